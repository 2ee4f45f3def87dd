#include "thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "team.h"

namespace codemill {
namespace {

// How often a thread looks for news before it sleeps. Within a call the next phase is microseconds away. After it the
// processor is PyTorch's.
constexpr int kCallSpins = 2000;
constexpr int kIdleSpins = 200;

using Work = void (*)(void* context, size_t index);

void pause_processor() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

// The workers, and the phase that they share with the leader of a call. Nobody waits for a worker that holds no item:
// one that was moved aside joins whatever phase there is when it runs again. So on a busy machine threads give way between
// items rather than lose their processor within one, and sleep rather than spin while another does not run: an idle
// processor is where the system puts the one that is waited for.
class ThreadPool {
public:
    // Begins a call with so many workers, or fewer if the system gives no more threads.
    void begin(int num_workers);
    void share(size_t count, Work work, void* context);
    void end() { in_call_ = false; }
    bool failed() const { return failed_; }

    // Held during a call. Who finds it taken works alone.
    std::mutex busy;

private:
    void serve(int number);
    bool take_item();
    bool has_items() const;
    void await_items();
    void await_done(uint32_t count);

    // The items of the phase in one number, so that a thread claims an item and learns that it exists in one step. A
    // phase does not end before its claimed items do, so who has claimed one may read `work_` and `context_`.
    static constexpr uint64_t ticket(uint64_t count, uint64_t next) { return count << 32 | next; }
    std::atomic<uint64_t> ticket_{0};
    Work work_ = nullptr;
    void* context_ = nullptr;
    alignas(64) std::atomic<uint32_t> num_done_{0};
    std::atomic<bool> is_leader_asleep_{false};
    std::atomic<bool> failed_{false};
    alignas(64) std::atomic<int> num_workers_{0};  // of this call
    std::atomic<bool> in_call_{false};
    std::atomic<int> num_asleep_{0};  // workers that wait for items
    std::atomic<int> news_{0};        // changes when they are woken
    int num_started_ = 0;
};

void ThreadPool::begin(int num_workers) {
    try {
        for (; num_started_ < num_workers; ++num_started_) std::thread(&ThreadPool::serve, this, num_started_).detach();
    } catch (const std::system_error&) {
        // Those there are do the work.
    } catch (const std::bad_alloc&) {
    }
    failed_ = false;
    in_call_ = true;
    if (num_workers_.exchange(num_workers) != num_workers) num_workers_.notify_all();
}

void ThreadPool::share(size_t count, Work work, void* context) {
    work_ = work;
    context_ = context;
    num_done_ = 0;
    ticket_ = ticket(count, 0);
    if (num_asleep_ != 0) {
        ++news_;
        news_.notify_all();
    }
    while (take_item()) {
    }
    await_done(static_cast<uint32_t>(count));
}

void ThreadPool::await_done(uint32_t count) {
    for (int spins = 0; num_done_ != count && spins < kCallSpins; ++spins) pause_processor();
    if (num_done_ == count) return;
    is_leader_asleep_ = true;
    for (uint32_t done; (done = num_done_) != count;) num_done_.wait(done);
    is_leader_asleep_ = false;
}

bool ThreadPool::has_items() const {
    const uint64_t seen = ticket_;
    return static_cast<uint32_t>(seen) < seen >> 32;
}

bool ThreadPool::take_item() {
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
    if (is_leader_asleep_) num_done_.notify_one();
    return true;
}

void ThreadPool::serve(int number) {
    for (;;) {
        for (int limit; number >= (limit = num_workers_);) num_workers_.wait(limit);
        if (!take_item()) await_items();
    }
}

void ThreadPool::await_items() {
    std::this_thread::yield();
    for (int spins = 0; spins < (in_call_ ? kCallSpins : kIdleSpins); ++spins) {
        if (has_items()) return;
        pause_processor();
    }
    const int seen = news_;
    ++num_asleep_;
    if (!has_items()) news_.wait(seen);
    --num_asleep_;
}

namespace {

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

void Team::share(size_t count, Work work, void* context) {
    if (pool_ && count > 1) return pool_->share(count, work, context);
    for (size_t index = 0; index < count; ++index) {
        try {
            work(context, index);
        } catch (const std::bad_alloc&) {
            failed_ = true;
        }
    }
}

bool Team::failed() const { return failed_ || (pool_ && pool_->failed()); }

bool run_team(int num_threads, void (*lead)(void* context, Team& team), void* context) {
    ThreadPool& shared = the_pool();
    std::unique_lock lock(shared.busy, std::defer_lock);
    const bool has_workers = num_threads > 1 && lock.try_lock();
    if (has_workers) shared.begin(num_threads - 1);
    Team team(num_threads, has_workers ? &shared : nullptr);
    try {
        lead(context, team);
    } catch (const std::bad_alloc&) {
        team.failed_ = true;
    }
    if (has_workers) shared.end();
    return !team.failed();
}

void parallel_for(int num_threads, size_t count, Work work, void* context) {
    const bool is_shared = num_threads > 1 && count > 1;
    run_team(is_shared ? num_threads : 1, [&](Team& team) { team.share(count, work, context); });
}

}  // namespace codemill
