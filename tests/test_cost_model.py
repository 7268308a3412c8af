"""What the loss is predicted to cost on a GPU."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks import cost


class TestCost:
    h100 = cost.DEVICES[0]
    head = cost.Head("Qwen's vocabulary", 4096, 151_936, trained=True)

    def test_the_model_gives_what_was_published_for_an_h100(self):
        """huggingface/trl#7244: GEMMs 42 ms, materialised logits 59 ms."""
        assert cost.gemm_seconds(self.h100, 8192, self.head) == pytest.approx(0.042, rel=0.05)
        assert cost.materialised(self.h100, 8192, self.head).seconds == pytest.approx(0.059, rel=0.05)

    def test_two_chunks_of_a_trained_head_by_hand(self):
        found = cost.chunked(self.h100, 8192, self.head)
        numbers, logits = 151_936 * 4096, 8192 * 151_936
        moved = 4 * logits + (4 + 8 + 6) * numbers
        by_hand = 3 * 2 * 8192 * numbers / (0.75 * 989e12) + moved / (0.9 * 3350e9)
        assert found.rows == 4096
        assert found.seconds == pytest.approx(by_hand, rel=1e-9)
        assert found.memory == 2 * 4096 * 151_936 + 4 * numbers

    def test_a_frozen_head_has_no_gradient_to_carry_and_an_evaluation_has_one_product(self):
        frozen = cost.chunked(self.h100, 8192, replace(self.head, trained=False))
        assert frozen.memory == 2 * frozen.rows * 151_936
        assert frozen.seconds < cost.chunked(self.h100, 8192, self.head).seconds * 2 / 3
        assert cost.gemm_seconds(self.h100, 8192, self.head, grad=False) * 3 == pytest.approx(
            cost.gemm_seconds(self.h100, 8192, self.head)
        )

    def test_a_chunk_of_few_rows_waits_for_the_weight(self):
        few = cost.chunked(self.h100, 8192, replace(self.head, trained=False), 1)
        assert few.rows == 256
        assert few.ratio > cost.chunked(self.h100, 8192, replace(self.head, trained=False)).ratio

    def test_no_tokens_cost_nothing(self):
        found = cost.chunked(self.h100, 0, self.head)
        assert (found.seconds, found.memory, found.rows) == (0, 0, 0)
        assert math.isnan(found.ratio)

    @pytest.mark.parametrize(
        "name",
        [
            "NVIDIA H100 PCIe",
            "NVIDIA H100 NVL",
            "NVIDIA GH200 480GB",
            "NVIDIA H200 NVL",
            "NVIDIA A100-SXM4-40GB",
            "NVIDIA A100-PCIE-40GB",
            "NVIDIA A100 80GB PCIe",
            "NVIDIA T400",
            "NVIDIA T400 4GB",
            "NVIDIA T4G",
            "Quadro T4000",
            "NVIDIA L40",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 4090 D",
        ],
    )
    def test_a_card_with_rates_of_its_own_is_not_taken_for_another(self, name):
        assert cost.device_of(name) is None

    @pytest.mark.parametrize(
        ("name", "card"),
        [
            ("NVIDIA H200", "H200"),
            ("NVIDIA A100-SXM4-80GB", "A100 80 GB SXM"),
            ("NVIDIA L40S", "L40S"),
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ],
    )
    def test_so_is_each_card_by_the_name_of_its_driver(self, name, card):
        assert cost.device_of(name).name == card

    def test_cards_are_known_by_the_name_that_the_driver_gives(self):
        assert cost.device_of("NVIDIA H100 80GB HBM3").name == "H100 SXM"
        assert cost.device_of("Tesla T4").processors == 40
        assert cost.device_of("a CPU") is None
        assert self.h100.measured(700, 3000).flops == pytest.approx(700e12)


def test_what_does_not_fit_a_card_is_marked():
    seven = next(head for head in cost.HEADS if head.name == "Qwen2.5 7B")
    lines = cost.table_of_devices(seven, 8192)
    marked = {line.split(" |")[0].strip("| ") for line in lines if "(does not fit)" in line}
    assert marked == {"T4 (float16)"}
