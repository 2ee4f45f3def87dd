#include "thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "team.h"

namespace codemill {
namespace {

// How often a thread looks for news before it sleeps or gives way. Long enough for the end of a neighbour's item, short
// enough not to keep the processor from PyTorch's threads between two calls.
constexpr int kSpins = 200;
// The same within a team, where the next phase is microseconds away.
constexpr int kTeamSpins = 20000;

void pause_processor() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct Job {
    size_t count = 0;
    void (*work)(void*, size_t) = nullptr;
    void* context = nullptr;
    int num_workers = 0;
};

class ThreadPool {
public:
    // Has the workers do `job` while this thread does `own`, which is over when there is nothing left for the workers.
    template <class Own>
    void run(int num_workers, const Job& job, Own own);
    void take_items();

    // Held during a call. Who finds it taken works alone.
    std::mutex busy;

private:
    void grow(int num_workers);
    void serve(int number, int seen);

    Job job_;                         // changes only while `open_` is false and `inside_` is 0
    std::atomic<size_t> next_{0};     // the first item that nobody has taken
    std::atomic<bool> open_{false};   // whether workers may enter the job
    std::atomic<int> inside_{0};      // workers that look at the job
    std::atomic<int> generation_{0};  // changes with every job; parked workers wait for that
    int num_workers_ = 0;
};

template <class Own>
void ThreadPool::run(int num_workers, const Job& job, Own own) {
    grow(num_workers);
    job_ = job;
    next_ = 0;
    open_ = true;
    ++generation_;
    generation_.notify_all();
    own();
    open_ = false;  // a worker that comes late finds the door closed, so nobody waits for it
    for (int spins = 0; inside_ != 0; ++spins) {
        spins < kSpins ? pause_processor() : std::this_thread::yield();
    }
}

void ThreadPool::grow(int num_workers) {
    try {
        for (; num_workers_ < num_workers; ++num_workers_) {
            std::thread(&ThreadPool::serve, this, num_workers_, generation_.load()).detach();
        }
    } catch (const std::system_error&) {
        // The system gives no more threads; those there are do the work.
    }
}

void ThreadPool::serve(int number, int seen) {
    for (;;) {
        for (int spins = 0; generation_ == seen && spins < kSpins; ++spins) pause_processor();
        generation_.wait(seen);
        seen = generation_;
        ++inside_;
        if (open_ && number < job_.num_workers) take_items();
        --inside_;
    }
}

void ThreadPool::take_items() {
    for (size_t index; (index = next_++) < job_.count;) job_.work(job_.context, index);
}

// Never destroyed: parked workers still look at it when the process ends. A forked child has none of the workers, and
// gets a pool of its own.
std::atomic<ThreadPool*> pool{nullptr};

ThreadPool& the_pool() {
    static std::once_flag once;
    std::call_once(once, [] {
        pool = new ThreadPool;
        pthread_atfork(nullptr, nullptr, [] { pool = new ThreadPool; });
    });
    return *pool;
}

}  // namespace

void parallel_for(int num_threads, size_t count, void (*work)(void* context, size_t index), void* context) {
    const int num_workers = static_cast<int>(std::min<size_t>(num_threads, count)) - 1;
    if (num_workers > 0) {
        ThreadPool& shared = the_pool();
        if (std::unique_lock lock(shared.busy, std::try_to_lock); lock) {
            shared.run(num_workers, {count, work, context, num_workers}, [&] { shared.take_items(); });
            return;
        }
    }
    for (size_t index = 0; index < count; ++index) work(context, index);
}

void Team::share(size_t count, Work work, void* context) {
    work_ = work;
    context_ = context;
    num_done_ = 0;
    ticket_ = ticket(count, 0);
    while (take_item()) {
    }
    for (int spins = 0; num_done_ != count; ++spins) {
        spins < kTeamSpins ? pause_processor() : std::this_thread::yield();
    }
}

bool Team::take_item() {
    uint64_t seen = ticket_.load();
    do {
        if (static_cast<uint32_t>(seen) >= seen >> 32) return false;
    } while (!ticket_.compare_exchange_weak(seen, seen + 1));
    try {
        work_(context_, static_cast<uint32_t>(seen));
    } catch (const std::bad_alloc&) {
        failed_ = true;
    }
    ++num_done_;
    return true;
}

void Team::follow() {
    for (int spins = 0; !ended_;) {
        if (take_item()) {
            spins = 0;
        } else {
            ++spins < kTeamSpins ? pause_processor() : std::this_thread::yield();
        }
    }
}

bool run_team(int num_threads, void (*lead)(void* context, Team& team), void* context) {
    Team team(num_threads);
    const auto follow = [](void* followed, size_t) { static_cast<Team*>(followed)->follow(); };
    const auto own = [&] {
        try {
            lead(context, team);
        } catch (const std::bad_alloc&) {
            team.failed_ = true;
        }
        team.ended_ = true;
    };
    ThreadPool& shared = the_pool();
    std::unique_lock lock(shared.busy, std::try_to_lock);
    const int num_workers = lock ? num_threads - 1 : 0;
    if (num_workers > 0) {
        shared.run(num_workers, {static_cast<size_t>(num_workers), follow, &team, num_workers}, own);
    } else {
        own();
    }
    return !team.failed_;
}

}  // namespace codemill
