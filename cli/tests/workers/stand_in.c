// A driver with two cards and a compiler for them that compile and compute nothing: what is asked of the machine is answered, what
// is put into a card's memory stays there, and every kernel does nothing. For tests of who gets which card.
#include <stdlib.h>
#include <string.h>

typedef int result;
typedef unsigned long long address;
enum { OK = 0, OUT_OF_MEMORY = 2 };

static const size_t MEMORY = 8ull << 30;

result cuDriverGetVersion(int *version) { *version = 12080; return OK; }
result cuInit(unsigned flags) { (void)flags; return OK; }
result cuDeviceGetCount(int *count) { *count = 2; return OK; }
result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
result cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    strncpy(name, "Stand-in", (size_t)size);
    return OK;
}
// The test's own, so that no other test's workers have them.
result cuDeviceGetUuid_v2(char *id, int device) {
    const char *seed = getenv("STAND_IN");
    memset(id, 0, 16);
    if (seed) strncpy(id, seed, 15);
    id[15] = (char)device;
    return OK;
}
result cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = MEMORY; return OK; }
result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 75: *value = 9; break;        // compute capability, major
    case 76: *value = 0; break;        // and minor
    case 97: *value = 99 * 1024; break; // shared memory that a block may opt in to
    default: *value = 2;
    }
    return OK;
}

static char context;
result cuDevicePrimaryCtxRetain(void **out, int device) { (void)device; *out = &context; return OK; }
result cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return OK; }
result cuCtxSetCurrent(void *of) { (void)of; return OK; }
result cuMemGetInfo_v2(size_t *left, size_t *all) { *left = MEMORY; *all = MEMORY; return OK; }
result cuMemAlloc_v2(address *out, size_t bytes) {
    void *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    *out = (address)memory;
    return memory ? OK : OUT_OF_MEMORY;
}
result cuMemFree_v2(address at) { free((void *)at); return OK; }
result cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    memcpy((void *)to, from, bytes);
    return OK;
}
result cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, void *stream) {
    (void)stream;
    memcpy(to, (const void *)from, bytes);
    return OK;
}
result cuMemsetD8Async(address to, unsigned char value, size_t bytes, void *stream) {
    (void)stream;
    memset((void *)to, value, bytes);
    return OK;
}
result cuStreamCreate(void **out, unsigned flags) { (void)flags; *out = &context; return OK; }
result cuStreamDestroy_v2(void *stream) { (void)stream; return OK; }
result cuStreamSynchronize(void *stream) { (void)stream; return OK; }
result cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)stream, (void)event, (void)flags;
    return OK;
}
result cuEventCreate(void **out, unsigned flags) { (void)flags; *out = &context; return OK; }
result cuEventRecord(void *event, void *stream) { (void)event, (void)stream; return OK; }
result cuEventDestroy_v2(void *event) { (void)event; return OK; }
result cuEventElapsedTime(float *ms, void *from, void *to) { (void)from, (void)to; *ms = 1; return OK; }
result cuEventElapsedTime_v2(float *ms, void *from, void *to) { return cuEventElapsedTime(ms, from, to); }
result cuModuleLoadData(void **out, const void *image) { (void)image; *out = &context; return OK; }
result cuModuleGetFunction(void **out, void *module, const char *name) {
    (void)module, (void)name;
    *out = &context;
    return OK;
}
result cuFuncSetAttribute(void *function, int attribute, int value) {
    (void)function, (void)attribute, (void)value;
    return OK;
}
result cuLaunchKernel(void *function, ...) { (void)function; return OK; }
result cuGetErrorString(result error, const char **text) { (void)error; *text = "an error"; return OK; }
result cuGetErrorName(result error, const char **text) { (void)error; *text = "ERROR"; return OK; }

result nvrtcVersion(int *major, int *minor) { *major = 12; *minor = 8; return OK; }
result nvrtcGetNumSupportedArchs(int *count) { *count = 1; return OK; }
result nvrtcGetSupportedArchs(int *known) { *known = 90; return OK; }
result nvrtcCreateProgram(void **out, ...) { *out = &context; return OK; }
result nvrtcCompileProgram(void *program, int count, const char **options) {
    (void)program, (void)count, (void)options;
    return OK;
}
result nvrtcGetCUBINSize(void *program, size_t *bytes) { (void)program; *bytes = 1; return OK; }
result nvrtcGetCUBIN(void *program, char *out) { (void)program; *out = 0; return OK; }
result nvrtcDestroyProgram(void **program) { *program = 0; return OK; }
