"""The oracle must be believed: it passes what is right, worked out here row by row, and refuses each corruption."""

import dataclasses

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import oracle, routing
from harness.backends.base import Received
from harness.case import Case
from harness.errors import WrongAnswer
from harness.inputs import make_inputs, token_rows

LL = Case(backend="torch", mode="ll", ranks=2, tokens=12, hidden=256, topk=3, experts=6, routing="masked")
LL_LOCAL_REDUCE = msgspec.structs.replace(LL, combine="local_reduce")
FP8 = msgspec.structs.replace(LL, dtype="fp8")
HT = msgspec.structs.replace(LL, mode="ht", combine="local_reduce")


def quantised(rows):
    """fp8 rows and scales, one block at a time."""
    data, scales = torch.empty(rows.shape, dtype=torch.float8_e4m3fn), torch.empty(len(rows), rows.shape[1] // 128)
    for block in range(scales.shape[1]):
        columns = slice(128 * block, 128 * (block + 1))
        scales[:, block] = torch.clamp_min(rows[:, columns].float().abs().amax(1), 1e-4) / 448
        data[:, columns] = (rows[:, columns].float() / scales[:, block, None]).to(torch.float8_e4m3fn)
    return data, scales


def arrived(case, rank):
    """What a faultless library would have put on this rank, found by walking over tokens."""
    local, rows = case.experts_per_rank, []
    for expert in range(local) if case.mode == "ll" else [None]:
        for source in range(case.ranks):
            for token, chosen in enumerate(routing.selections(case, source)):
                mine = [int(e) - rank * local if e != -1 and int(e) // local == rank else -1 for e in chosen]
                if case.mode == "ll":
                    rows += [(expert, source, token, mine)] * mine.count(expert)
                elif any(e >= 0 for e in mine):
                    rows.append((0, source, token, mine))
    expert, source, token = (torch.tensor([row[i] for row in rows], dtype=torch.int64) for i in range(3))
    originals = [token_rows(case, peer) for peer in range(case.ranks)]
    x = torch.stack([originals[row[1]][row[2]] for row in rows])
    x, scales = quantised(x) if case.dtype == "fp8" else (x, None)
    if case.mode == "ht":
        weights = torch.stack([torch.from_numpy(routing.weights(case, row[1])[row[2]]) for row in rows])
        topk_idx = torch.tensor([row[3] for row in rows])
        return Received(
            x=x, source=source, token=token, topk_idx=topk_idx, topk_weights=weights.masked_fill(topk_idx < 0, 0)
        )
    length = torch.zeros(local, case.ranks, dtype=torch.int64)
    length.index_put_((expert, source), torch.ones_like(expert), accumulate=True)
    counts = length.sum(1)
    slot = torch.cat([torch.arange(int(count)) for count in counts])
    begin = torch.cumsum(length, 1) - length
    return Received(
        x=x, scales=scales, source=source, token=token, expert=expert, slot=slot, counts=counts, begin=begin,
        length=length, ordered=True,
    )  # fmt: skip


def one_expert(x, expert):
    """What an expert returns for one row: rotated to the left by (expert mod 17), times its factor."""
    return torch.roll(x.float() * oracle.expert_factor(expert), -(int(expert) % 17)).to(torch.bfloat16).float()


def combined(case, rank):
    """The result of combine, token by token in float32, in the order the case's arithmetic says."""
    inputs, rows = make_inputs(case, rank), []
    for x, chosen, weights in zip(inputs.x, inputs.topk_idx, inputs.topk_weights, strict=True):
        parts = {}
        for expert, weight in zip(chosen.tolist(), weights, strict=True):
            if expert >= 0:
                peer = 0 if case.combine == "exact" else expert // case.experts_per_rank
                output = one_expert(x, torch.tensor(expert))
                parts[peer] = parts.get(peer, torch.zeros(case.hidden)) + weight * output
        total = torch.zeros(case.hidden)
        for peer in sorted(parts):
            total = total + parts[peer].to(torch.bfloat16).float() if case.combine != "exact" else parts[peer]
        rows.append(total.to(torch.bfloat16))
    return torch.stack(rows)


cases = st.builds(
    lambda base, ranks, tokens, topk, per_rank, name, seed: msgspec.structs.replace(
        base,
        ranks=ranks,
        tokens=tokens,
        topk=min(topk, ranks * per_rank),
        experts=ranks * per_rank,
        routing=name,
        seed=seed,
    ),
    st.sampled_from([LL, LL_LOCAL_REDUCE, FP8, HT]),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(list(routing.GENERATORS)),
    st.integers(0, 1000),
)


@settings(max_examples=80, deadline=None)
@given(cases)
def test_what_is_right_passes(case):
    for rank in range(case.ranks):
        try:
            received = arrived(case, rank)
        except RuntimeError:
            continue  # nothing lands on this rank: there is nothing to stack
        assert oracle.check_dispatch(case, rank, received) == len(received.source)
        assert oracle.check_combine(case, rank, combined(case, rank)) == case.tokens


@settings(max_examples=40, deadline=None)
@given(cases, st.randoms(use_true_random=False))
def test_rows_in_any_order_pass_where_no_order_is_promised(case, random):
    try:
        received = arrived(case, 0)
    except RuntimeError:
        return
    order = torch.tensor(random.sample(range(len(received.source)), len(received.source)), dtype=torch.int64)
    names = ("x", "source", "token", "scales", "expert", "slot", "topk_idx", "topk_weights")
    shuffled = {
        name: getattr(received, name).view(torch.uint8)[order].view(received.x.dtype)
        if name == "x"
        else getattr(received, name)[order]
        for name in names
        if getattr(received, name) is not None
    }
    oracle.check_dispatch(case, 0, dataclasses.replace(received, **shuffled, ordered=False))


def changed(tensor, place, value):
    copy = tensor.clone()
    copy[place] = value
    return copy


def swapped(tensor, first, second):
    copy = tensor.clone()
    copy[first], copy[second] = tensor[second].clone(), tensor[first].clone()
    return copy


def two_rows_of_one_expert(received):
    for row in range(1, len(received.source)):
        if received.expert[row] == received.expert[row - 1] and received.source[row] != received.source[row - 1]:
            return row - 1, row
    raise AssertionError("no such rows")


# name: (words of the refusal, what changes)
LL_FAULTS = {
    "one element": ("wrong in 1 of 256 columns: column 200", lambda r: {"x": changed(r.x, (5, 200), 17.0)}),
    "lowest bit of one element": (
        "wrong in 1 of 256 columns",
        lambda r: {"x": changed(r.x.view(torch.int16), (3, 99), r.x.view(torch.int16)[3, 99] ^ 1).view(torch.bfloat16)},
    ),
    "row never written": ("the row was never written", lambda r: {"x": changed(r.x, 4, torch.nan)}),
    "row of another token": ("its own columns say token", lambda r: {"x": changed(r.x, 0, r.x[-1])}),
    "two rows crossed": ("wrong in", lambda r: {"x": swapped(r.x, *two_rows_of_one_expert(r))}),
    "row too many": ("count of rows per local expert", lambda r: {"counts": changed(r.counts, 1, r.counts[1] + 1)}),
    "row lost": (
        "rows were received, wanted",
        lambda r: {n: getattr(r, n)[:-1] for n in ("x", "source", "token", "expert", "slot")},
    ),
    "src_info": ("src_info", lambda r: {"token": changed(r.token, 2, (r.token[2] + 1) % 12)}),
    "src_info never written": (
        "token of received row 2 is -7777777",
        lambda r: {"token": changed(r.token, 2, oracle.POISON_INTEGER)},
    ),
    "source": ("source rank of the received rows", lambda r: {"source": changed(r.source, 2, 1 - r.source[2])}),
    "source in no block": ("source rank of received row 2 is -1", lambda r: {"source": changed(r.source, 2, -1)}),
    "expert": ("local expert", lambda r: {"expert": changed(r.expert, 0, 2)}),
    "slot used twice": ("slots of the received rows", lambda r: {"slot": changed(r.slot, 1, 0)}),
    "slots beyond the count": ("slots of the received rows", lambda r: {"slot": r.slot + 1}),
    "block begins elsewhere": ("whose block in layout_range", lambda r: {"begin": r.begin + 1}),
    "block's length": ("length of the blocks", lambda r: {"length": changed(r.length, (0, 0), r.length[0, 0] + 1)}),
    "order of sources": (
        "order of the rows' sources",
        lambda r: {"slot": swapped(r.slot, *two_rows_of_one_expert(r)), "begin": None},
    ),
    "wrong dtype": ("received rows are torch.float32", lambda r: {"x": r.x.float()}),
    "wrong width": ("wanted torch.bfloat16", lambda r: {"x": r.x[:, :128]}),
}


@pytest.mark.parametrize("fault", LL_FAULTS)
def test_each_corruption_of_a_packed_dispatch_is_refused(fault):
    words, corrupt = LL_FAULTS[fault]
    received = arrived(LL, 1)
    with pytest.raises(WrongAnswer, match=words):
        oracle.check_dispatch(LL, 1, dataclasses.replace(received, **corrupt(received)))


FP8_FAULTS = {
    "scale by a part in ten thousand": ("scale of received row 3", lambda r: {"scales": r.scales * 1.0001}),
    "one scale": ("block 1", lambda r: {"scales": changed(r.scales, (2, 1), r.scales[2, 1] * 2)}),
    "scale never written": ("scale of received row", lambda r: {"scales": changed(r.scales, (2, 1), torch.nan)}),
    "blocks of another size": ("scales of .* rows have shape", lambda r: {"scales": r.scales[:, :1]}),
    "no scales": ("without scales", lambda r: {"scales": None}),
    "transposed scales": ("scales describes 2 rows", lambda r: {"scales": r.scales.T}),
    "row never written": (
        "wrong in 256 of 256",
        lambda r: {"x": changed(r.x.view(torch.uint8), 3, 0x7F).view(torch.float8_e4m3fn)},
    ),
    "row of another token": (
        "wrong in",
        lambda r: {
            "x": changed(r.x.view(torch.uint8), 0, r.x.view(torch.uint8)[-1]).view(torch.float8_e4m3fn),
            "scales": changed(r.scales, 0, r.scales[-1]),
        },
    ),
    "not quantised": ("wanted torch.float8_e4m3fn", lambda r: {"x": r.x.float()}),
}


@pytest.mark.parametrize("fault", FP8_FAULTS)
def test_each_corruption_of_an_fp8_dispatch_is_refused(fault):
    words, corrupt = FP8_FAULTS[fault]
    received = arrived(FP8, 0)
    if fault == "row of another token":
        words = "(scale of received row 0|wrong in)"
    if fault == "scale by a part in ten thousand":
        words = "scale of received row"
    with pytest.raises(WrongAnswer, match=words):
        oracle.check_dispatch(FP8, 0, dataclasses.replace(received, **corrupt(received)))


def test_an_fp8_value_one_step_off_is_refused():
    received = arrived(FP8, 0)
    exact = token_rows(FP8, int(received.source[0]))[received.token[0]].float() / received.scales[0].repeat_interleave(
        128
    )
    column = int(exact.abs().argmax())
    step = received.x.view(torch.uint8)[0, column] - 1
    wrong = changed(received.x.view(torch.uint8), (0, column), step).view(torch.float8_e4m3fn)
    with pytest.raises(WrongAnswer, match=f"wrong in 1 of 256 columns: column {column}"):
        oracle.check_dispatch(FP8, 0, dataclasses.replace(received, x=wrong))


@pytest.mark.parametrize("truncate", [torch.floor, torch.trunc])
def test_fp8_rounded_towards_zero_is_refused(truncate):
    received = arrived(FP8, 0)
    originals = oracle._originals(FP8, received).float() / received.scales.repeat_interleave(128, 1)
    step = torch.ldexp(torch.ones_like(originals), torch.frexp(originals).exponent.sub(4).clamp_min(-9))
    towards = (truncate(originals / step) * step).to(torch.float8_e4m3fn)
    with pytest.raises(WrongAnswer, match="wrong in"):
        oracle.check_dispatch(FP8, 0, dataclasses.replace(received, x=towards))


HT_FAULTS = {
    "one element": ("wrong in 1 of 256 columns", lambda r: {"x": changed(r.x, (1, 255), 3.0)}),
    "row lost": (
        "rows were received, wanted",
        lambda r: {n: getattr(r, n)[1:] for n in ("x", "source", "token", "topk_idx", "topk_weights")},
    ),
    "token twice": ("token of the received rows", lambda r: {"token": changed(r.token, 1, r.token[0])}),
    "source": ("source rank of the received rows", lambda r: {"source": 1 - r.source}),
    "selection": ("topk_idx", lambda r: {"topk_idx": changed(r.topk_idx, (0, 0), 7)}),
    "global instead of local": ("topk_idx", lambda r: {"topk_idx": torch.where(r.topk_idx >= 0, r.topk_idx + 3, -1)}),
    "weight": ("topk_weights", lambda r: {"topk_weights": r.topk_weights.nextafter(torch.ones(()))}),
    "weight where nothing is selected": (
        "topk_weights",
        lambda r: {"topk_weights": torch.where(r.topk_idx < 0, 0.5, r.topk_weights)},
    ),
    "no metadata": ("without topk_idx or topk_weights", lambda r: {"topk_idx": None}),
}


@pytest.mark.parametrize("fault", HT_FAULTS)
def test_each_corruption_of_a_ranked_dispatch_is_refused(fault):
    words, corrupt = HT_FAULTS[fault]
    received = arrived(HT, 1)
    with pytest.raises(WrongAnswer, match=words):
        oracle.check_dispatch(HT, 1, dataclasses.replace(received, **corrupt(received)))


def with_bit_flipped(tensor, place):
    bits = tensor.clone().view(torch.int16)
    bits[place] ^= 1
    return bits.view(torch.bfloat16)


@pytest.mark.parametrize("case", [LL, HT])
@pytest.mark.parametrize("place", [(0, 0), (11, 255), (6, 128)])
def test_one_bit_of_combine_is_refused(case, place):
    wrong = with_bit_flipped(combined(case, 0), place)
    with pytest.raises(WrongAnswer, match=f"wrong in 1 of 3072 elements: token {place[0]}, column {place[1]}"):
        oracle.check_combine(case, 0, wrong)


def test_poisoned_combine_output_and_wrong_shape_are_refused():
    with pytest.raises(WrongAnswer, match="nan"):
        oracle.check_combine(LL, 0, torch.full((12, 256), torch.nan, dtype=torch.bfloat16))
    with pytest.raises(WrongAnswer, match="combine gave"):
        oracle.check_combine(LL, 0, combined(LL, 0).float())


def test_the_two_arithmetics_and_other_orders_give_other_bits():
    case = msgspec.structs.replace(LL, tokens=256, hidden=4096, topk=6, routing="uniform")
    exact = oracle.expected_combine(case, 0)
    reduced = oracle.expected_combine(msgspec.structs.replace(case, mode="ht", combine="local_reduce"), 0)
    assert not torch.equal(exact, reduced)
    inputs = make_inputs(case, 0)
    backwards = torch.zeros(256, 4096)
    for column in reversed(range(6)):
        outputs = torch.stack([one_expert(x, e) for x, e in zip(inputs.x, inputs.topk_idx[:, column], strict=True)])
        backwards += outputs * inputs.topk_weights[:, column, None]
    assert not torch.equal(exact, backwards.to(torch.bfloat16))


def test_expert_outputs_tell_experts_tokens_and_ranks_apart():
    received = arrived(LL, 1)
    outputs = oracle.expert_output(LL, 1, received)
    assert not torch.equal(outputs, received.x)
    assert len(torch.unique(outputs.float(), dim=0)) == len(
        {(int(e), int(s), int(t)) for e, s, t in zip(received.expert, received.source, received.token, strict=True)}
    )
    factors = oracle.expert_factor(torch.arange(32))
    assert len(torch.unique(factors)) == 32


def test_every_row_of_a_world_is_different_and_names_itself():
    case = msgspec.structs.replace(LL, ranks=3, experts=6, tokens=300, hidden=8)
    rows = torch.cat([token_rows(case, rank) for rank in range(3)]).float()
    assert len(torch.unique(rows, dim=0)) == 900
    assert (rows[:, 0] == torch.arange(3).repeat_interleave(300)).all()
    assert (rows[:, 1] + 256 * rows[:, 2] + 65536 * rows[:, 3] == torch.arange(300).repeat(3)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int32, torch.int64])
def test_poison_leaves_nothing_that_passes(dtype):
    tensor = torch.zeros(4, 4, dtype=dtype)
    oracle.poison(tensor)
    if dtype.is_floating_point:
        assert torch.isnan(tensor.float()).all()
    else:
        assert (tensor == oracle.POISON_INTEGER).all()
