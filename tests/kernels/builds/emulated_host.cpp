// The library's entry points on this machine, for one compiled for another processor that an emulator runs.
//
// Preloaded into a process, this gives it all its memory from pages that the emulated process has at the same address.
// So pointers mean the same in both, and a call is its arguments. The entry points themselves are generated: each hands
// its arguments to `codemill_forward`.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "emulated.h"

namespace {

using namespace emulated;

// The lists of free pieces of memory, one for each power of two. A piece begins with its size's number, sixteen bytes
// before what the caller gets.
struct Piece {
    Piece* next;
};

struct Header {
    uint32_t order;
    uint32_t offset;  // of the caller's part from the piece
};

constexpr int kOrders = 48, kLargeOrder = 20;
constexpr size_t kPage = 4096;
std::atomic_flag lock = ATOMIC_FLAG_INIT;
Piece* free_pieces[kOrders];
char* unused = nullptr;
int memory_file = -1;

void fail(const char* what) {
    fprintf(stderr, "emulated library: %s: %s\n", what, strerror(errno));
    abort();
}

void map_memory() {
    memory_file = memfd_create("codemill", 0);
    void* const wanted = reinterpret_cast<void*>(kAddress);
    const bool sized = memory_file >= 0 && ftruncate(memory_file, kBytes) == 0;
    const int flags = MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    if (!sized || mmap(wanted, kBytes, PROT_READ | PROT_WRITE, flags, memory_file, 0) != wanted) fail("no memory");
    unused = static_cast<char*>(wanted) + sizeof(Call);
}

Piece* take(int order) {
    while (lock.test_and_set(std::memory_order_acquire)) {
    }
    if (!unused) map_memory();
    Piece* piece = free_pieces[order];
    if (piece) {
        free_pieces[order] = piece->next;
    } else if (unused + (size_t{1} << order) <= reinterpret_cast<char*>(kAddress + kBytes)) {
        piece = reinterpret_cast<Piece*>(unused);
        unused += size_t{1} << order;
    }
    lock.clear(std::memory_order_release);
    return piece;
}

Header* header(void* memory) { return reinterpret_cast<Header*>(static_cast<char*>(memory) - 16); }

void* allocate(size_t size, size_t alignment) {
    if (size > kBytes) {
        errno = ENOMEM;
        return nullptr;
    }
    int order = 6;
    while ((size_t{1} << order) < size + alignment + 16) ++order;
    char* const piece = reinterpret_cast<char*>(order < kOrders ? take(order) : nullptr);
    if (!piece) {
        errno = ENOMEM;
        return nullptr;
    }
    const uintptr_t memory = (reinterpret_cast<uintptr_t>(piece) + 16 + alignment - 1) / alignment * alignment;
    void* const own = reinterpret_cast<void*>(memory);
    *header(own) = {static_cast<uint32_t>(order), static_cast<uint32_t>(memory - reinterpret_cast<uintptr_t>(piece))};
    return own;
}

// Pages of a large piece that nobody has go back to the system, or a long run takes all its memory.
void give_back(Piece* piece, int order) {
    if (order < kLargeOrder) return;
    const uintptr_t start = reinterpret_cast<uintptr_t>(piece), stop = start + (size_t{1} << order);
    const uintptr_t first = (start + sizeof(Piece) + kPage - 1) / kPage * kPage;
    madvise(reinterpret_cast<void*>(first), stop / kPage * kPage - first, MADV_REMOVE);
}

size_t usable(void* memory) { return (size_t{1} << header(memory)->order) - header(memory)->offset; }

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* malloc(size_t size) { return allocate(size, 16); }

void free(void* memory) {
    if (!memory) return;
    const int order = header(memory)->order;
    Piece* const piece = reinterpret_cast<Piece*>(static_cast<char*>(memory) - header(memory)->offset);
    give_back(piece, order);
    while (lock.test_and_set(std::memory_order_acquire)) {
    }
    piece->next = free_pieces[order];
    free_pieces[order] = piece;
    lock.clear(std::memory_order_release);
}

void* calloc(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) return nullptr;
    void* const memory = allocate(bytes, 16);
    return memory ? memset(memory, 0, bytes) : nullptr;
}

void* realloc(void* memory, size_t size) {
    if (!memory) return malloc(size);
    if (size <= usable(memory)) return memory;
    void* const larger = malloc(size);
    if (larger) memcpy(larger, memory, usable(memory));
    if (larger) free(memory);
    return larger;
}

int posix_memalign(void** to, size_t alignment, size_t size) {
    *to = allocate(size, alignment);
    return *to ? 0 : ENOMEM;
}

void* aligned_alloc(size_t alignment, size_t size) { return allocate(size, alignment); }
void* memalign(size_t alignment, size_t size) { return allocate(size, alignment); }
size_t malloc_usable_size(void* memory) { return memory ? usable(memory) : 0; }

// Mapped weights are read instead: changes to them are private, so nobody can tell.
void* mmap64(void* wanted, size_t size, int protection, int flags, int file, off64_t offset) {
    if (file < 0 || !(flags & MAP_PRIVATE) || !(protection & PROT_WRITE)) {
        return reinterpret_cast<void*>(syscall(SYS_mmap, wanted, size, protection, flags, file, offset));
    }
    char* const memory = static_cast<char*>(allocate(size, kPage));
    if (!memory) return MAP_FAILED;
    size_t done = 0;
    for (ssize_t count; (count = pread64(file, memory + done, size - done, offset + done)) > 0;) done += count;
    memset(memory + done, 0, size - done);
    return memory;
}

void* mmap(void* wanted, size_t size, int protection, int flags, int file, off_t offset) {
    return mmap64(wanted, size, protection, flags, file, offset);
}

int munmap(void* memory, size_t size) {
    if (reinterpret_cast<uintptr_t>(memory) - kAddress >= kBytes) return static_cast<int>(syscall(SYS_munmap, memory, size));
    free(memory);
    return 0;
}

}  // extern "C"
#pragma GCC visibility pop

namespace {

int requests[2], replies[2];

void start_emulator() {
    const char* const guest = getenv("CODEMILL_EMULATED");
    if (!guest || pipe(requests) != 0 || pipe(replies) != 0) fail("no guest");
    // It ends when this end of its requests is closed, so that nobody else may have that.
    for (const int own : {requests[1], replies[0]}) fcntl(own, F_SETFD, FD_CLOEXEC);
    char memory[16], in[16], out[16];
    snprintf(memory, sizeof memory, "%d", memory_file);
    snprintf(in, sizeof in, "%d", requests[0]);
    snprintf(out, sizeof out, "%d", replies[1]);
    const char* const named = getenv("CODEMILL_EMULATED_CPU");
    const char* const cpu = named ? named : "max";
    const char* const arguments[] = {"qemu-aarch64-static", "-cpu", cpu, guest, memory, in, out, nullptr};
    const char* const environment[] = {nullptr};
    pid_t child;
    const int error = posix_spawnp(&child, arguments[0], nullptr, nullptr, const_cast<char**>(arguments),
                                   const_cast<char**>(environment));
    if (error) fail("no emulator");
    close(requests[0]);
    close(replies[1]);
}

}  // namespace

int codemill_forward(int function, const Slot* slots, int num_slots) {
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    static bool started = false;
    pthread_mutex_lock(&one_at_a_time);
    if (!started) start_emulator();
    started = true;
    Call* const call = reinterpret_cast<Call*>(kAddress);
    call->function = function;
    for (int i = 0; i < num_slots; ++i) call->slots[i] = slots[i];
    char token = 0;
    if (write(requests[1], &token, 1) != 1 || read(replies[0], &token, 1) != 1) fail("the guest has died");
    const int status = call->status;
    pthread_mutex_unlock(&one_at_a_time);
    return status;
}
