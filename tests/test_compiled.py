"""The compiler's view of a model: one graph, the eager numbers, and angles and masks computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from chattune.models.families.gpt import GPT
from chattune.models.int8 import uncompiled
from chattune.models.language_model import LanguageModel
from chattune.train.device import Worker


def _loss_and_gradients(model: LanguageModel, hidden: object) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 10 + [1] * 12 + [-1] * 2, [0] * 24], dtype=torch.int32)
    positions = torch.tensor([[*range(10), *range(12), 0, 0], [*range(24)]])
    model.zero_grad()
    out = hidden(ids, positions, segments)  # type: ignore[operator]
    loss = torch.nn.functional.cross_entropy(model.head(out[segments >= 0]), ids.roll(-1, 1)[segments >= 0])
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_compiled_step_is_one_graph_with_the_eager_loss_and_gradients() -> None:
    model = GPT(layers=2, width=32, heads=2, context=32, init_outputs="scaled").build(50, 0).train()
    loss, gradients = _loss_and_gradients(model, model.hidden)
    torch._dynamo.reset()
    seen: list[str] = []

    def eager_but_traced(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    traced, found = _loss_and_gradients(model, torch.compile(model.hidden, dynamic=False, fullgraph=True, backend=eager_but_traced))
    assert sum("chattune.turns" in name for name in seen) == 1
    assert sum("chattune.window_bias" in name for name in seen) == 1
    # The traced graph takes the plain formulas instead of the hand-written ones: equal but for rounding in float32.
    torch.testing.assert_close(traced, loss, rtol=1e-6, atol=1e-7)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def test_int8_compiles_to_one_graph_too() -> None:
    model = GPT(layers=1, width=32, heads=2, context=32, init_outputs="scaled").build(50, 0).train()
    wide, _ = _loss_and_gradients(model, model.hidden)
    Worker(model, "int8")
    loss, gradients = _loss_and_gradients(model, model.hidden)
    torch._dynamo.reset()
    seen: list[str] = []

    def eager_but_traced(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for part in graph.modules() if isinstance(part, torch.fx.GraphModule) for node in part.graph.nodes)
        return graph

    traced, found = _loss_and_gradients(model, torch.compile(model.hidden, dynamic=False, fullgraph=True, backend=eager_but_traced))
    assert loss != wide
    assert any("int8_product" in name for name in seen) is (not uncompiled()), seen
    # The traced formulas differ in the last bit, which moves a number to the next of 127 steps here and there.
    torch.testing.assert_close(traced, loss, rtol=1e-3, atol=0.0)
    assert found.keys() == gradients.keys()
