// Threads of our own that go through the phases of one long call together. The leader's code is sequential; each
// `for_each` in it is a phase whose items all threads share.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace codemill {

class Team {
public:
    // Calls function(i) for every i below `count`, on any of the threads; returns when all are done. Which thread takes
    // which item is not fixed: results must not depend on it.
    template <class Function>
    void for_each(size_t count, Function&& function) {
        const auto call = [](void* context, size_t index) {
            (*static_cast<std::remove_reference_t<Function>*>(context))(index);
        };
        share(count, call, &function);
    }

    int num_threads() const { return num_threads_; }
    // Whether memory ran out in an item.
    bool failed() const { return failed_; }

private:
    friend bool run_team(int num_threads, void (*lead)(void* context, Team& team), void* context);
    explicit Team(int num_threads) : num_threads_(num_threads) {}

    using Work = void (*)(void* context, size_t index);
    void share(size_t count, Work work, void* context);
    bool take_item();
    void follow();

    // The items of the phase in one number, so that a thread claims an item and learns that it exists in one step. A
    // phase does not end before its claimed items do, so who has claimed one may read `work_` and `context_`.
    static constexpr uint64_t ticket(uint64_t count, uint64_t next) { return count << 32 | next; }
    std::atomic<uint64_t> ticket_{0};
    Work work_ = nullptr;
    void* context_ = nullptr;
    const int num_threads_;
    std::atomic<bool> ended_{false};
    std::atomic<bool> failed_{false};
    alignas(64) std::atomic<size_t> num_done_{0};
};

// Runs lead(context, team) on this thread, with at most `num_threads` threads in the team. Returns false if memory ran
// out in an item.
bool run_team(int num_threads, void (*lead)(void* context, Team& team), void* context);

template <class Function>
bool run_team(int num_threads, Function&& function) {
    const auto lead = [](void* context, Team& team) {
        (*static_cast<std::remove_reference_t<Function>*>(context))(team);
    };
    return run_team(num_threads, lead, &function);
}

}  // namespace codemill
