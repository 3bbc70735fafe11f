"""One rank of a world of two nodes that ends without a word to the others: `python leaving_rank.py SECONDS`."""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from ep_core import Buffer

dist.init_process_group("gloo", timeout=timedelta(seconds=60))
buffer = Buffer(dist.group.WORLD, 1 << 18, timeout_s=30)
ranks = dist.get_world_size()
x, topk_idx = torch.ones(4, 128, dtype=torch.bfloat16), torch.arange(4).view(4, 1) % ranks
per_rank, per_node, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, ranks)
rows, _, _, _, handle, _ = buffer.dispatch(x, None, per_rank, per_node, in_rank, per_expert)
combined, _, _ = buffer.combine(rows, handle)
assert torch.equal(combined, x)
time.sleep(float(sys.argv[1]))
