from dataclasses import replace
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
from models.reference import make_ours, make_reference
from train.conftest import LOOP, OPTIMIZER, make_rows
from codemill.train.loop import Trainer
from codemill.train.objective import CrossEntropy
from codemill.train.parallel import Parallel, Processes
from codemill.train.parallel_config import ParallelConfig
from codemill.train.policy import Policy
from codemill.train.source import PackedSource
MODES={"dp":({},"qwen3"),"fsdp":({"shard":True},"qwen3"),"tp":({"tensor":2},"qwen3"),"ep":({"expert":2},"qwen3_moe"),
"fsdpmoe":({"shard":True},"qwen3_moe"),"fsdpnext":({"shard":True},"qwen3_next"),"tpnext":({"tensor":2},"qwen3_next"),"epnext":({"expert":2},"qwen3_next"),
"epfsdp":({"expert":2,"shard":True},"qwen3_moe"),"epfsdp4":({"expert":2,"shard":True},"qwen3_moe"),"tpfsdp4":({"tensor":2,"shard":True},"qwen3"),"ep4":({"expert":2},"qwen3_moe")}
def train(family, parallel, directory, opt):
    model=make_ours(make_reference(family)).requires_grad_(True)
    loop=replace(LOOP, steps=5, checkpoint_every=100, rows_per_step=8, rows_per_micro_batch=2)
    tr=Trainer(Policy(model), CrossEntropy(), PackedSource(make_rows(30), loop, parallel.data_rank, parallel.num_shares), {}, loop, opt, Path(directory), parallel=parallel)
    reports=list(tr.run())
    return reports, {n:(p.full_tensor() if isinstance(p,DTensor) else p).detach() for n,p in model.named_parameters()}
def go(mode, directory):
    settings,family=MODES[mode]
    out={}
    for name in ("adamw","muon"):
        opt=replace(OPTIMIZER,name=name, max_grad_norm=0.5)
        par=Processes(ParallelConfig(**settings))
        r,w=train(family,par,directory+name,opt)
        torch.manual_seed(0)
        r1,w1=train(family,Parallel(),directory+name+"one%d"%par.rank,opt)
        out[name]=(max(abs(a.loss-b.loss) for a,b in zip(r,r1)), max(abs(a.grad_norm-b.grad_norm) for a,b in zip(r,r1)), max((w[n]-w1[n]).abs().max().item() for n in w), r[0].tokens==r1[0].tokens, max(((w[n]-w1[n]).abs().max().item(),n) for n in w)[1], [x.grad_norm for x in r1][:2])
    return out
