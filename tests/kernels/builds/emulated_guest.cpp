// The emulated side: maps the caller's memory where the caller has it, and does what it is asked.
#include <cstdio>
#include <cstdlib>

#include <sys/mman.h>
#include <unistd.h>

#include "emulated.h"

// The numbers of the open files: the memory, the requests and the replies.
int main(int, char** arguments) {
    using namespace emulated;
    const int memory = std::atoi(arguments[1]), requests = std::atoi(arguments[2]), replies = std::atoi(arguments[3]);
    void* const wanted = reinterpret_cast<void*>(kAddress);
    if (mmap(wanted, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, memory, 0) != wanted) {
        std::perror("emulated library: cannot map the caller's memory");
        return 1;
    }
    Call* const call = static_cast<Call*>(wanted);
    for (char token; read(requests, &token, 1) == 1;) {
        call->status = codemill_dispatch(call->function, call->slots);
        if (write(replies, &token, 1) != 1) return 1;
    }
}
