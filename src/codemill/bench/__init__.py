"""`codemill bench`: how fast a model runs here, beside what the machine allows and beside other engines.

Every engine, ours too, runs in a process of its own (`worker`), so that memory is its own and two OpenMP runtimes never
meet; engines take turns, round by round (`turns`), and one that fails leaves the others alone. `roofline` says what the
machine's measured limits would allow.
"""
