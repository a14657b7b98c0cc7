// CUDA's thread model on the CPU, to prove kernels where there is no GPU.
//
// A block's threads are fibers on one thread of the machine; blocks run one after the other. A fiber runs until it
// waits: in a barrier, for the other lanes of a collective, or to its end. Who runs next is drawn from the seed, so that
// a barrier that is missing shows under some seed: what has not been written yet reads as POISON. Asynchronous copies
// land at once or at their wait, as the seed says: a missing wait and a buffer that is refilled too early both show.
// When nobody can run, the report says who waits where.
//
// Fibers switch in assembly on x86-64 (six registers, some 5 ns; ucontext would enter the kernel each time to save a
// signal mask that nobody changes), and by ucontext elsewhere.
//
// What it cannot show: races of several blocks on global memory, bank conflicts, coalescing, speed.

#include "launch.h"

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <sys/mman.h>

#include "../intrinsics.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SHIM_ASAN 1
#else
#define SHIM_ASAN 0
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

// Each translation unit of kernels has one of these.
void shim_announce_plain();
void shim_announce_wrong();
void shim_announce_c0_g32();
void shim_announce_c0_g64();
void shim_announce_c0_g128();
void shim_announce_c1_g32();
void shim_announce_c2_g32();
void shim_announce_c2_g64();

namespace {

constexpr int WARP = 32;
constexpr unsigned MAX_THREADS = 1024;
// What every GPU since sm_86 lets a block have.
constexpr size_t MAX_SHARED = 99 * 1024;
constexpr size_t SHARED_GUARD = 1024;
constexpr size_t STACK_BYTES = SHIM_ASAN ? 256 * 1024 : 64 * 1024;
// NaN as f32, negative as i8 and i32.
constexpr u32 POISON = 0xffa5a5a5u;

#if defined(__x86_64__)
// Saves what a call must keep, and goes on where the other stack was left.
extern "C" void shim_switch(void** save, void* load);
asm(R"(
.text
.globl shim_switch
.type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch, .-shim_switch
)");
#endif

enum class State { Ready, InBarrier, InCollective, Done };

struct Copy {
    void* to;
    const void* from;
    int bytes;
};

struct Fiber {
    u8* stack = nullptr;
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    State state = State::Done;
    shim::Site site{};
    const char* waits_in = "";
    // Copies of open and of closed groups, the oldest first.
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
#if SHIM_ASAN
    void* fake_stack = nullptr;
#endif
};

// Lanes that have come to one collective and wait for the rest of its mask.
struct Meeting {
    bool active = false;
    shim::Collective kind;
    shim::Site site;
    u32 mask;
    u32 arrived;
    const u32* in[WARP];
    u32* out[WARP];
};

struct Warp {
    // Masks of meetings that are open at one time are disjoint.
    Meeting meetings[WARP];
};

// SplitMix64.
struct Random {
    u64 state;
    u64 next() {
        u64 x = state += 0x9e3779b97f4a7c15ull;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
        return x ^ (x >> 31);
    }
};

void fiber_main();

// All that a launch needs; one per thread of the machine, kept for the next launch.
struct Machine {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned> ready;
    u8* stacks = nullptr;
    std::unique_ptr<u8[]> shared_store;
    u8* shared = nullptr;
    size_t shared_bytes = 0;
    unsigned threads = 0;
    unsigned in_barrier = 0;
    unsigned done = 0;
    unsigned current = 0;
    bool eager = true;
    bool failed = false;
    Random random{};
    shim::Entry entry = nullptr;
    void** arguments = nullptr;
    std::string error;
#if defined(__x86_64__)
    void* scheduler_pointer = nullptr;
#else
    ucontext_t scheduler;
#endif
#if SHIM_ASAN
    void* fake_stack = nullptr;
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_bytes = 0;
#endif

    ~Machine() {
        if (stacks) munmap(stacks, MAX_THREADS * STACK_BYTES);
    }

    void prepare(const ShimLaunch& launch) {
        if (!stacks) {
            void* memory = mmap(nullptr, MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory == MAP_FAILED) {
                perror("stacks of fibers");
                abort();
            }
            stacks = static_cast<u8*>(memory);
            shared_store.reset(new u8[MAX_SHARED + SHARED_GUARD + 128]);
            shared = reinterpret_cast<u8*>((reinterpret_cast<uintptr_t>(shared_store.get()) + 127) & ~uintptr_t{127});
        }
        threads = launch.block[0] * launch.block[1] * launch.block[2];
        if (fibers.size() < threads) fibers.resize(threads);
        warps.resize((threads + WARP - 1) / WARP);
        shared_bytes = launch.shared_bytes;
        eager = launch.seed == 0;
        random.state = launch.seed;
        failed = false;
        error.clear();
    }

    void start_block() {
        ready.clear();
        for (u32 word = 0; word < (shared_bytes + SHARED_GUARD + 3) / 4; word++) memcpy(shared + 4 * word, &POISON, 4);
        for (Warp& warp : warps)
            for (Meeting& meeting : warp.meetings) meeting.active = false;
        in_barrier = done = 0;
        for (unsigned i = 0; i < threads; i++) {
            Fiber& fiber = fibers[i];
            fiber.state = State::Ready;
            fiber.groups.clear();
            fiber.open.clear();
            fiber.stack = stacks + i * STACK_BYTES;
#if defined(__x86_64__)
            // As if fiber_main had been called: the return address is at 16n + 8.
            auto* top = reinterpret_cast<void**>(fiber.stack + STACK_BYTES);
            top[-2] = reinterpret_cast<void*>(fiber_main);
            fiber.stack_pointer = top - 8;
#else
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack;
            fiber.context.uc_stack.ss_size = STACK_BYTES;
            makecontext(&fiber.context, fiber_main, 0);
#endif
        }
        // The last of `ready` runs next when eager.
        for (unsigned i = threads; i-- > 0;) ready.push_back(i);
    }

    bool run_block() {
        start_block();
        while (!ready.empty() && !failed) {
            if (!eager) std::swap(ready.back(), ready[random.next() % ready.size()]);
            current = ready.back();
            ready.pop_back();
            resume();
        }
        if (!failed && done != threads) report_deadlock();
        if (!failed) check_guard();
        return !failed;
    }

    void resume() {
        Fiber& fiber = fibers[current];
        const unsigned x = blockDim.x, y = blockDim.y;
        threadIdx = {current % x, current / x % y, current / (x * y)};
#if SHIM_ASAN
        __sanitizer_start_switch_fiber(&fake_stack, fiber.stack, STACK_BYTES);
#endif
#if defined(__x86_64__)
        shim_switch(&scheduler_pointer, fiber.stack_pointer);
#else
        swapcontext(&scheduler, &fiber.context);
#endif
#if SHIM_ASAN
        __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    }

    // Back to the scheduler; returns when the fiber is drawn again.
    void leave(bool for_good = false) {
        Fiber& fiber = fibers[current];
        (void)for_good;
#if SHIM_ASAN
        __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_bytes);
#endif
#if defined(__x86_64__)
        shim_switch(&fiber.stack_pointer, scheduler_pointer);
#else
        swapcontext(&fiber.context, &scheduler);
#endif
#if SHIM_ASAN
        __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
    }

    [[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 2, 3))) {
        char line[512];
        va_list list;
        va_start(list, format);
        vsnprintf(line, sizeof line, format, list);
        va_end(list);
        set_error(line);
        // The block is lost, and with it all its fibers.
        for (;;) leave();
    }

    void set_error(const std::string& what) {
        char place[96];
        snprintf(place, sizeof place, "block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
        error = place + what;
        failed = true;
    }

    void wake(unsigned thread) {
        fibers[thread].state = State::Ready;
        ready.push_back(thread);
    }

    // The fiber is ready and others may come first; when eager it just goes on.
    void pause() {
        if (eager) return;
        wake(current);
        leave();
    }

    void report_deadlock() {
        std::map<std::string, std::vector<unsigned>> places;
        for (unsigned i = 0; i < threads; i++) {
            const Fiber& fiber = fibers[i];
            char place[256];
            if (fiber.state == State::Done)
                snprintf(place, sizeof place, "ended");
            else
                snprintf(place, sizeof place, "in %s at %s:%d", fiber.waits_in, fiber.site.file, fiber.site.line);
            places[place].push_back(i);
        }
        std::string what = "deadlock:";
        for (const auto& [place, who] : places) {
            char line[384];
            snprintf(line, sizeof line, " %zu threads %s (the first is %u);", who.size(), place.c_str(), who[0]);
            what += line;
        }
        what.pop_back();
        set_error(what);
    }

    void check_guard() {
        for (size_t at = (shared_bytes + 3) / 4 * 4; at < shared_bytes + SHARED_GUARD; at += 4) {
            if (memcmp(shared + at, &POISON, 4) != 0) {
                set_error("shared memory was written beyond its end");
                return;
            }
        }
    }
};

thread_local Machine machine;

void fiber_main() {
#if SHIM_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
    machine.entry(machine.arguments);
    Fiber& fiber = machine.fibers[machine.current];
    fiber.state = State::Done;
    machine.done++;
    machine.leave(true);
    abort();
}

void land(const std::vector<Copy>& copies) {
    for (const Copy& copy : copies) memcpy(copy.to, copy.from, copy.bytes);
}

const char* name(shim::Collective kind) {
    switch (kind) {
        case shim::Collective::SyncWarp: return "sync_warp";
        case shim::Collective::Shuffle: return "shuffle_xor";
        case shim::Collective::Vote: return "vote";
        case shim::Collective::Mma: return "mma";
    }
    return "";
}

// The fragment map of intrinsics.h, word for word.
void multiply(const Meeting& meeting) {
    int a[16][32], b[8][32];
    for (int lane = 0; lane < WARP; lane++) {
        const u32* in = meeting.in[lane];
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            a[g][4 * t + i] = (i8)(in[0] >> (8 * i));
            a[g + 8][4 * t + i] = (i8)(in[1] >> (8 * i));
            a[g][16 + 4 * t + i] = (i8)(in[2] >> (8 * i));
            a[g + 8][16 + 4 * t + i] = (i8)(in[3] >> (8 * i));
            b[g][4 * t + i] = (i8)(in[4] >> (8 * i));
            b[g][16 + 4 * t + i] = (i8)(in[5] >> (8 * i));
        }
    }
    u32 d[WARP][4];
    for (int lane = 0; lane < WARP; lane++) {
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            int sum = (int)meeting.in[lane][6 + i];
            for (int k = 0; k < 32; k++) sum += a[row][k] * b[column][k];
            d[lane][i] = (u32)sum;
        }
    }
    for (int lane = 0; lane < WARP; lane++) memcpy(meeting.out[lane], d[lane], 16);
}

void complete(const Meeting& meeting) {
    switch (meeting.kind) {
        case shim::Collective::SyncWarp: return;
        case shim::Collective::Shuffle:
            for (int lane = 0; lane < WARP; lane++) {
                if (!(meeting.mask >> lane & 1)) continue;
                const u32 source = (u32)lane ^ meeting.in[lane][1];
                // From a lane outside the mask nothing is defined.
                const bool there = source < WARP && (meeting.mask >> source & 1);
                *meeting.out[lane] = there ? meeting.in[source][0] : POISON;
            }
            return;
        case shim::Collective::Vote: {
            u32 votes = 0;
            for (int lane = 0; lane < WARP; lane++)
                if ((meeting.mask >> lane & 1) && meeting.in[lane][0]) votes |= 1u << lane;
            for (int lane = 0; lane < WARP; lane++)
                if (meeting.mask >> lane & 1) *meeting.out[lane] = votes;
            return;
        }
        case shim::Collective::Mma: return multiply(meeting);
    }
}

std::map<std::string, shim::Entry>* filling = nullptr;

const std::map<std::string, shim::Entry>& kernels() {
    static const std::map<std::string, shim::Entry> all = [] {
        std::map<std::string, shim::Entry> made;
        filling = &made;
        shim_announce_plain();
        shim_announce_wrong();
        for (const auto announce_form : {shim_announce_c0_g32, shim_announce_c0_g64, shim_announce_c0_g128,
                                         shim_announce_c1_g32, shim_announce_c2_g32, shim_announce_c2_g64})
            announce_form();
        filling = nullptr;
        return made;
    }();
    return all;
}

}  // namespace

namespace shim {

void announce(const char* name, Entry entry) { filling->emplace(name, entry); }

u8* shared_memory() { return machine.shared; }

void barrier(Site site) {
    Machine& m = machine;
    Fiber& me = m.fibers[m.current];
    me.state = State::InBarrier;
    me.waits_in = "sync_threads";
    me.site = site;
    if (++m.in_barrier < m.threads) {
        m.leave();
        return;
    }
    for (unsigned i = 0; i < m.threads; i++) {
        const Site other = m.fibers[i].site;
        if (other.line != site.line || strcmp(other.file, site.file) != 0)
            m.fail("thread %u is in the barrier at %s:%d, thread %u in the one at %s:%d", m.current, site.file,
                   site.line, i, other.file, other.line);
    }
    m.in_barrier = 0;
    for (unsigned i = m.threads; i-- > 0;)
        if (i != m.current) m.wake(i);
    me.state = State::Ready;
    m.pause();
}

void rendezvous(Collective kind, Site site, u32 mask, const u32* in, int, u32* out, int) {
    Machine& m = machine;
    const unsigned thread = m.current, lane = thread % WARP;
    Fiber& me = m.fibers[thread];
    Warp& warp = m.warps[thread / WARP];
    if (!(mask >> lane & 1))
        m.fail("%s at %s:%d: thread %u is not in its own mask %08x", name(kind), site.file, site.line, thread, mask);
    Meeting* meeting = nullptr;
    for (Meeting& other : warp.meetings) {
        if (!other.active || !(other.mask & mask)) continue;
        if (other.mask != mask || other.kind != kind || other.site.line != site.line ||
            strcmp(other.site.file, site.file) != 0)
            m.fail("warp %u: lane %u is in %s at %s:%d with mask %08x, another lane in %s at %s:%d with mask %08x",
                   thread / WARP, lane, name(kind), site.file, site.line, mask, name(other.kind), other.site.file,
                   other.site.line, other.mask);
        meeting = &other;
    }
    for (Meeting& free : warp.meetings) {
        if (meeting) break;
        if (!free.active) {
            meeting = &free;
            free.active = true;
            free.kind = kind, free.site = site, free.mask = mask, free.arrived = 0;
        }
    }
    meeting->arrived |= 1u << lane;
    meeting->in[lane] = in;
    meeting->out[lane] = out;
    if (meeting->arrived != mask) {
        me.state = State::InCollective;
        me.waits_in = name(kind);
        me.site = site;
        m.leave();
        return;
    }
    complete(*meeting);
    meeting->active = false;
    for (int other = WARP - 1; other >= 0; other--)
        if ((mask >> other & 1) && (unsigned)other != lane) m.wake(thread - lane + other);
    m.pause();
}

void copy_async(void* to, const void* from, int bytes, Site site) {
    Machine& m = machine;
    const auto* end = static_cast<u8*>(to) + bytes;
    if (to < m.shared || end > m.shared + m.shared_bytes)
        m.fail("copy_async at %s:%d: thread %u copies outside of shared memory", site.file, site.line, m.current);
    if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
        m.fail("copy_async at %s:%d: thread %u copies %d bytes that are not aligned", site.file, site.line, m.current,
               bytes);
    // Real copies land at any time between here and the wait.
    if (!m.eager && m.random.next() % 4 == 0)
        memcpy(to, from, bytes);
    else
        m.fibers[m.current].open.push_back({to, from, bytes});
}

void copy_async_commit() {
    Fiber& me = machine.fibers[machine.current];
    me.groups.push_back(std::move(me.open));
    me.open.clear();
}

void copy_async_wait(int pending) {
    Fiber& me = machine.fibers[machine.current];
    const int landing = std::max(0, (int)me.groups.size() - pending);
    for (int i = 0; i < landing; i++) land(me.groups[i]);
    me.groups.erase(me.groups.begin(), me.groups.begin() + landing);
}

}  // namespace shim

bool shim_has_kernel(const char* name) { return kernels().count(name) != 0; }

const char* shim_launch(const ShimLaunch* launch) {
    Machine& m = machine;
    const auto found = kernels().find(launch->name);
    const u64 threads = (u64)launch->block[0] * launch->block[1] * launch->block[2];
    const u64 blocks = (u64)launch->grid[0] * launch->grid[1] * launch->grid[2];
    if (found == kernels().end()) {
        m.error = std::string("no kernel ") + launch->name;
        return m.error.c_str();
    }
    if (threads == 0 || threads > MAX_THREADS || blocks == 0 || launch->shared_bytes > MAX_SHARED ||
        launch->grid[1] > 65535 || launch->grid[2] > 65535) {
        char line[160];
        snprintf(line, sizeof line, "%llu blocks of %llu threads with %zu bytes of shared memory cannot be launched",
                 (unsigned long long)blocks, (unsigned long long)threads, launch->shared_bytes);
        m.error = line;
        return m.error.c_str();
    }
    m.prepare(*launch);
    m.entry = found->second;
    m.arguments = launch->arguments;
    gridDim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    blockDim = {launch->block[0], launch->block[1], launch->block[2]};
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x; x++) {
                blockIdx = {x, y, z};
                if (!m.run_block()) {
                    m.error = std::string(launch->name) + ": " + m.error;
                    return m.error.c_str();
                }
            }
    return nullptr;
}
