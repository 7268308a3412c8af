"""The command that starts ranks, from the variables that people set."""

from __future__ import annotations

import sys

from dft_plugin.config.ranks import torchrun

WORDS = ("a folder/cfg.yaml", "output_dir=an out")


def test_a_static_start():
    environ = {"NNODES": "2", "NODE_RANK": "1", "NPROC_PER_NODE": "4", "MASTER_ADDR": "10.0.0.1"}
    command = torchrun(environ, "a.module", WORDS, devices=8, port=29500)
    assert command == [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4", "--nnodes", "2"),
        *("--node-rank", "1", "--master-addr", "10.0.0.1", "--master-port", "29500"),
        *("-m", "a.module", *WORDS),
    ]


def test_an_elastic_start():
    environ = {"RDZV_ID": "7", "MIN_NNODES": "1", "MAX_NNODES": "3", "MAX_RESTARTS": "2", "NNODES": "2"}
    command = torchrun(environ, "a.module", WORDS, devices=8, port=29500)
    assert command == [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "8", "--nnodes", "1:3"),
        *("--rdzv-id", "7", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29500", "--max-restarts", "2"),
        *("-m", "a.module", *WORDS),
    ]
