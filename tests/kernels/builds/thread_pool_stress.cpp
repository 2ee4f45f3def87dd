// The thread pool under ThreadSanitizer: calls of all sizes from several threads at once, each checked for its result.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "team.h"
#include "thread_pool.h"

namespace {

void check(bool right, const char* what) {
    if (right) return;
    std::fprintf(stderr, "wrong: %s\n", what);
    std::exit(1);
}

// Every item once. The numbers are plain ones, so that a missing synchronisation is seen.
void share(int num_threads, size_t count) {
    std::vector<int> done(count);
    auto work = [&](size_t index) { ++done[index]; };
    codemill::parallel_for(num_threads, count, work);
    for (const int times : done) check(times == 1, "an item of parallel_for");
}

// Phases that each read what another thread may have written in the one before.
void run_phases(int num_threads, size_t count, int num_phases) {
    std::vector<uint32_t> numbers(count), others(count);
    const bool succeeded = codemill::run_team(num_threads, [&](codemill::Team& team) {
        for (int phase = 0; phase < num_phases; ++phase) {
            team.for_each(count, [&](size_t index) { others[index] = numbers[(index + 1) % count] + 1; });
            numbers.swap(others);
        }
    });
    check(succeeded, "a team");
    for (const uint32_t number : numbers) check(number == static_cast<uint32_t>(num_phases), "a phase");
}

void run_out_of_memory(int num_threads) {
    const bool succeeded = codemill::run_team(num_threads, [](codemill::Team& team) {
        team.for_each(7, [](size_t index) {
            if (index == 5) throw std::bad_alloc();
        });
    });
    check(!succeeded, "memory that ran out");
}

void run_many(int seed) {
    for (int round = 0; round < 60; ++round) {
        const int num_threads = 1 + (round + seed) % 5;
        share(num_threads, (round * 37 + seed) % 203);
        run_phases(num_threads, 1 + (round * 13 + seed) % 29, 20);
        run_out_of_memory(num_threads);
    }
}

}  // namespace

int main() {
    run_many(0);
    std::vector<std::thread> callers;
    for (int seed = 1; seed <= 3; ++seed) callers.emplace_back(run_many, seed);
    for (std::thread& caller : callers) caller.join();
    std::puts("the thread pool: no races");
    // Parked workers do not end: leave them.
    std::fflush(stdout);
    std::_Exit(0);
}
