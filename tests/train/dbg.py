from train.parallel_runs import *
import torch


def go(directory):
    from train.test_parallel import LORA

    case = Case("qwen3_moe", lora=LORA)
    par = Processes(case.parallel)
    t = make_trainer(case, directory / "a", par)
    r = make_trainer(case, directory / f"b{par.rank}", Parallel(), 2)
    out = []
    for step in range(3):
        res = []
        for x in (t, r):
            res.append(x._accumulate(x.source.micro_batches(step)))
        for (n, p), (_, q) in zip(t.policy.trained.named_parameters(), r.policy.trained.named_parameters()):
            if p.grad is None or q.grad is None:
                out.append((step, n, "none", p.grad is None, q.grad is None))
                continue
            if not torch.equal(p.grad, q.grad):
                out.append((step, n, (p.grad - q.grad).abs().max().item(), p.grad.stride(), p.grad.abs().max().item()))
        for x in (t, r):
            for o in x.optimizers:
                o.step()
                o.zero_grad(set_to_none=True)
    return out


if __name__ == "__main__":
    import tempfile
    from train.processes import run_processes
    from train import dbg

    d = Path(tempfile.mkdtemp())
    for o in run_processes(dbg.go, d, d)[0][:20]:
        print(o)
