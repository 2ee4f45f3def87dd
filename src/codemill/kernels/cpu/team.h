// Threads of our own that go through the phases of one long call together. The leader's code is sequential; each
// `for_each` in it is a phase whose items all threads share.
#pragma once

#include <cstddef>
#include <type_traits>

namespace codemill {

class ThreadPool;

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

    // The same for a plain function.
    void share(size_t count, void (*work)(void* context, size_t index), void* context);

    int num_threads() const { return num_threads_; }
    // Whether memory ran out in an item.
    bool failed() const;

private:
    friend bool run_team(int num_threads, void (*lead)(void* context, Team& team), void* context);
    Team(int num_threads, ThreadPool* pool) : num_threads_(num_threads), pool_(pool) {}

    const int num_threads_;
    ThreadPool* const pool_;  // null: the leader works alone
    bool failed_ = false;     // of the leader working alone
};

// Runs lead(context, team) on this thread, with at most `num_threads` threads in the team. Returns false if memory ran
// out.
bool run_team(int num_threads, void (*lead)(void* context, Team& team), void* context);

template <class Function>
bool run_team(int num_threads, Function&& function) {
    const auto lead = [](void* context, Team& team) {
        (*static_cast<std::remove_reference_t<Function>*>(context))(team);
    };
    return run_team(num_threads, lead, &function);
}

}  // namespace codemill
