// The shim's outer side: what the driver calls, and how a translation unit hands its kernels over.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

namespace shim {

using Entry = void (*)(void** arguments);

// Makes a kernel known by name.
void announce(const char* name, Entry entry);

// The kernel `K` with its arguments behind pointers, as cuLaunchKernel takes them.
template <auto K>
struct Caller;
template <class... A, void (*K)(A...)>
struct Caller<K> {
    template <size_t... I>
    static void spread(void** arguments, std::index_sequence<I...>) {
        K(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
    }
    static void call(void** arguments) { spread(arguments, std::index_sequence_for<A...>{}); }
};

}  // namespace shim

#define SHIM_ANNOUNCE_(name) shim::announce(#name, shim::Caller<&name>::call)
// Hands over the kernel `name`.
#define SHIM_ANNOUNCE(name) SHIM_ANNOUNCE_(name)

extern "C" {

struct ShimLaunch {
    const char* name;
    unsigned grid[3];
    unsigned block[3];
    size_t shared_bytes;
    void** arguments;
    // Decides the order of threads and when copies land. 0 is eager: in order, each as far as it gets.
    unsigned long long seed;
};

// Whether a kernel of this name exists.
bool shim_has_kernel(const char* name);
// Runs a kernel. Null if all went well, else what was wrong, good until this thread's next launch.
const char* shim_launch(const ShimLaunch* launch);

}
