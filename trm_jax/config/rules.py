"""What a config cannot be: ranges, and fields that contradict each other."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from trm_jax import puzzles
from trm_jax.config.fields import Arch, ConfigError, Experiment, Make, make_fields, read_options

Need = Callable[[bool, str, str], None]  # (holds, field, what must hold): notes the fault where it does not


def impossible(e: Experiment) -> list[str]:
    """What types cannot tell: ranges, and fields that contradict each other."""
    faults: list[str] = []

    def get(name: str) -> Any:
        return operator.attrgetter(name)(e)

    def need(ok: bool, name: str, rule: str):
        if not ok:
            faults.append(f"{name} = {get(name)!r}: {rule}")

    for name in ("arch.L_layers", "arch.hidden_size", "arch.num_heads", "arch.halt_max_steps", "arch.grad_cycles",
                 "global_batch_size", "epochs", "eval.batch_size", "eval.settled_cycles",
                 "checkpoint.interval_steps", "checkpoint.keep_last", "log.interval_steps"):
        need(get(name) >= 1, name, "must be at least 1")
    _impossible_recursion(e, need)
    _impossible_update(e, need)
    _impossible_supervision(e, need)
    for name in ("arch.H_layers", "arch.grad_calls", "arch.puzzle_emb_ndim", "arch.puzzle_emb_len",
                 "arch.mlp_hidden_size", "arch.mixer_hidden_size", "deepen.carry_steps", "seed",
                 "total_steps", "lr_warmup_steps",
                 "eval.interval_steps", "eval.max_examples", "eval.restarts", "eval.sigma", "grad_clip_norm",
                 "transition_lr_warmup_steps", "checkpoint.keep_best", "weight_decay", "puzzle_emb_weight_decay",
                 "optimizer_reset_scale", "puzzle_emb_lr", "lr"):
        need(get(name) >= 0, name, "must not be negative")
    for name in ("arch.prob_detach_prev_H", "arch.halt_exploration_prob", "deepen.carry_share",
                 "deepen.carry_keep_prob", "deepen.tail_prob", "lr_min_ratio", "rows_only"):
        need(0 <= get(name) <= 1, name, "is a share, from 0 to 1 (not percent)")
    need(e.total_steps < 2**31, "total_steps", "must be under 2**31: steps are counted in 32 bits")
    need(e.seed < 2**32, "seed", "must be under 2**32: jax would drop the digits above")
    for name in ("beta1", "beta2", "ema_rate"):
        need(0 <= getattr(e, name) < 1, name, "must be at least 0 and under 1")
    _impossible_puzzle(e, faults, need)
    need(not e.rows_only or e.arch.puzzle_emb_ndim > 0, "rows_only", "needs a puzzle table: arch.puzzle_emb_ndim > 0")
    need(e.arch.expansion > 0, "arch.expansion", "must be positive")
    need(e.arch.rms_norm_eps > 0, "arch.rms_norm_eps", "must be positive")
    _impossible_attention(e, need)
    _impossible_make(e, need)
    if e.arch.puzzle_emb_ndim == 0:
        need(e.arch.puzzle_emb_len == 0, "arch.puzzle_emb_len",
             "must be 0 when arch.puzzle_emb_ndim = 0 (there is no prefix)")
    elif e.arch.puzzle_emb_len:
        need(e.arch.puzzle_emb_ndim <= e.arch.puzzle_emb_len * e.arch.hidden_size, "arch.puzzle_emb_ndim",
             f"does not fit into puzzle_emb_len * hidden_size = {e.arch.puzzle_emb_len * e.arch.hidden_size}")
    for milestones, amounts in (("curriculum_milestones", "curriculum_heads_to_add"),
                                ("curriculum_L_milestones", "curriculum_L_to_add")):
        m, a = getattr(e, milestones), getattr(e, amounts)
        need(len(m) == len(a), amounts, f"must have one entry for each of {milestones} ({len(m)}), has {len(a)}")
        need(all(0 < x <= 100 for x in m), milestones, "are percent of all steps, over 0 to 100")
        need(list(m) == sorted(set(m)), milestones, "must ascend")
        need(all(x >= 0 for x in a), amounts, "must not be negative")
    deepest = e.arch.H_cycles + sum(e.curriculum_heads_to_add)
    need(e.deepen.carry_steps == 0 or e.deepen.carry_share > 0, "deepen.carry_steps", "needs deepen.carry_share > 0")
    need(e.deepen.tail_prob == 0 or e.deepen.tail_max_H >= deepest, "deepen.tail_max_H",
         f"must be at least the H that the curriculum ends at, {deepest}")
    need(len(e.eval.H_test) > 0 and all(h >= 1 for h in e.eval.H_test), "eval.H_test", "needs entries of at least 1")
    need(list(e.eval.H_test) == sorted(set(e.eval.H_test)), "eval.H_test", "must ascend")
    need(all(l >= 1 for l in e.eval.L_test), "eval.L_test", "needs entries of at least 1")
    need(e.eval.restarts < 2 or e.eval.vary != "draw" or draws(e.arch), "eval.vary",
         "needs a network that draws: arch.start = 'random' or arch.update_noise_test > 0")
    need(e.eval.restarts < 2 or e.eval.vary in ("symmetry", "draw") or e.eval.sigma > 0, "eval.sigma",
         "must be positive: restarts that differ by noise need some")
    return faults


def _impossible_puzzle(e: Experiment, faults: list[str], need: Need) -> None:
    """What is asked of a puzzle that it does not offer."""
    name = e.data.puzzle
    try:
        domain = puzzles.domain_class(name)
    except puzzles.PuzzleError as error:
        faults.append(f"data.puzzle = {name!r}: {error}")
        return
    need(e.data.labels == "fixed" or domain.has_several_answers, "data.labels",
         f"must be 'fixed' for data.puzzle = {name!r}: a puzzle has one right answer")
    need(not e.data.augment or domain.has_symmetries, "data.augment",
         f"must be False for data.puzzle = {name!r}: it {domain.no_symmetries}")
    need(e.eval.restarts == 0 or domain.has_rules, "eval.restarts",
         f"must be 0: {name} has no rules to verify an answer by")
    need(e.eval.restarts < 2 or e.eval.vary != "symmetry" or domain.has_symmetries, "eval.vary",
         f"must be 'start' or 'cycle' for data.puzzle = {name!r}: it {domain.no_symmetries}")


def _impossible_make(e: Experiment, need: Need) -> None:
    made = e.data.make
    for name in ("train", "test", "seed", "clues", "min_rating", "num_aug"):
        need(getattr(made, name) >= 0, f"data.make.{name}", "must not be negative")
    need(made.min_length >= -1, "data.make.min_length", "must be at least 0, or -1 for the usual length")
    for name in ("box", "size"):
        sides = getattr(made, name)
        need(len(sides) == 2 and min(sides) >= 1, f"data.make.{name}", "must be rows and columns, at least 1 of each")
    if not made.source:
        return
    used = make_fields(made.source, e.data.puzzle)
    need(bool(used), "data.make.source", f"is not for data.puzzle = {e.data.puzzle!r}")
    for name in vars(made) if used else ():
        need(name in ("source", *used) or getattr(made, name) == getattr(Make, name), f"data.make.{name}",
             f"has no meaning with data.make.source = {made.source!r}")
    if "options" in used:
        try:
            puzzles.with_options(e.data.puzzle, read_options(made.options))
        except (ConfigError, puzzles.PuzzleError) as error:
            need(False, "data.make.options", str(error))
    required = {"csv": ("csv", "test_csv"), "arc_json": ("json_dir", "subsets", "test_subset")}
    for name in required.get(made.source, ()):
        need(bool(getattr(made, name)), f"data.make.{name}", f"is needed with data.make.source = {made.source!r}")


def draws(arch: Arch) -> bool:
    """Does answering need random numbers for each puzzle?"""
    return arch.start == "random" or arch.update_noise_test > 0


def no_cudnn(head: int, forward_dtype: str) -> str:
    """Why cuDNN's attention cannot be had for heads of this size and this dtype; "" if it can."""
    if forward_dtype != "bfloat16":
        return f"cuDNN's needs arch.forward_dtype = 'bfloat16', not {forward_dtype!r}"
    if head % 8 or head > 128:
        return f"cuDNN's needs a head size, hidden_size / num_heads, that 8 divides and of at most 128, not {head}"
    return ""


def _impossible_attention(e: Experiment, need: Need) -> None:
    a = e.arch
    head, rest = divmod(a.hidden_size, max(a.num_heads, 1))
    need(a.units or not a.candidates, "arch.candidates", "needs arch.units = True")
    if a.units:
        need(a.mlp_t, "arch.mlp_t", "must be True with arch.units: there is no attention")
        need(a.mixer_hidden_size >= 1, "arch.mixer_hidden_size", "must be given with arch.units: of one kind of unit")
        need(a.puzzle_emb_ndim == 0, "arch.puzzle_emb_ndim", "must be 0 with arch.units: a prefix is in no unit")
        need(a.pos_encodings == "none", "arch.pos_encodings", "must be 'none' with arch.units: it knows no positions")
        need(not (a.candidates and a.tie_head), "arch.tie_head", "must be False with arch.candidates: what is read and "
             "what is answered are not the same tokens")
    need(a.rope_columns >= 0, "arch.rope_columns", "must not be negative")
    need(not a.rope_columns or a.pos_encodings == "rope", "arch.rope_columns", "needs arch.pos_encodings = 'rope'")
    if a.mlp_t:
        need(a.pos_encodings != "rope", "arch.pos_encodings", "RoPE needs attention; set arch.mlp_t = False")
        need(a.attention == "auto", "arch.attention", "has no meaning without attention (mlp_t = True)")
        return
    need(rest == 0, "arch.num_heads", f"must divide arch.hidden_size = {a.hidden_size}")
    need(a.mixer_hidden_size == 0, "arch.mixer_hidden_size", "has no meaning with attention (mlp_t = False)")
    if rest == 0 and a.pos_encodings == "rope":
        need(head % 2 == 0, "arch.num_heads", "RoPE needs an even head size, hidden_size / num_heads")
        need(head % 4 == 0 or not a.rope_columns, "arch.num_heads",
             "RoPE by row and column needs a head size, hidden_size / num_heads, that 4 divides")
    if rest == 0 and a.attention == "cudnn":
        need(not no_cudnn(head, a.forward_dtype), "arch.attention", no_cudnn(head, a.forward_dtype))


def _impossible_recursion(e: Experiment, need: Need) -> None:
    a = e.arch
    transition = a.supervision == "terminal" and a.prob_detach_prev_H != 1
    need(a.H_cycles >= 1 + transition, "arch.H_cycles", f"must be at least {1 + transition}"
         + (" in training (the transition and the active cycle)" if transition else ""))
    need(a.grad_cycles <= max(1, a.H_cycles - transition), "arch.grad_cycles",
         f"must be at most H_cycles = {a.H_cycles}" + (", less one for the transition" if transition else ""))
    if a.recursion == "direct":
        need(a.L_cycles == 0, "arch.L_cycles", "must be 0 with arch.recursion = 'direct' (there are no inner cycles)")
    else:
        need(a.L_cycles >= 1, "arch.L_cycles", "must be at least 1")
    if a.recursion in ("single_z", "direct"):
        need(a.H_layers == 0, "arch.H_layers",
             f"must be 0 with arch.recursion = {a.recursion!r}: there is one latent, and one network that updates it")
    if a.recursion in ("multi_z", "direct"):
        why = f"with arch.recursion = {a.recursion!r} the number of inner cycles is fixed by what there is to update"
        need(not e.curriculum_L_milestones, "curriculum_L_milestones", f"must be empty: {why}")
        need(all(L == a.L_cycles for L in e.eval.L_test), "eval.L_test", f"must be empty: {why}")
    need(a.grad_calls <= a.L_cycles + 1, "arch.grad_calls",
         f"must be at most L_cycles + 1 = {a.L_cycles + 1}, the calls of the last outer cycle; 0 stands for all")


def _impossible_update(e: Experiment, need: Need) -> None:
    a = e.arch
    for name in ("start_std", "halt_residual", "solver_min_size"):
        need(getattr(a, name) > 0, f"arch.{name}", "must be positive")
    for name in ("update_noise", "update_noise_test"):
        need(getattr(a, name) >= 0, f"arch.{name}", "must not be negative")
    for name in ("update_share", "solver_decay", "solver_decay_test", "step_loss_decay"):
        need(0 < getattr(a, name) <= 1, f"arch.{name}", "must be over 0 and at most 1")
    need(a.solver_patience >= 1, "arch.solver_patience", "must be at least 1")
    if a.recursion == "multi_z":
        why = "with arch.recursion = 'multi_z': a reasoning latent is set anew from the sum of all, it does not move"
        need(a.update == "replace", "arch.update", f"must be 'replace' {why}")
        need(a.update_noise == a.update_noise_test == 0, "arch.update_noise", f"and update_noise_test must be 0 {why}")
        need(a.halt_by == "head", "arch.halt_by", f"must be 'head' {why}")
    need(not a.output_norm or a.block == "pre_norm", "arch.output_norm",
         "needs arch.block = 'pre_norm': a post-norm block ends with a norm already")
    need(a.halt_by == "head" or a.no_ACT_continue, "arch.no_ACT_continue",
         "must be True with arch.halt_by = 'residual': nobody asks q_continue")


def _impossible_supervision(e: Experiment, need: Need) -> None:
    a = e.arch
    halts = a.halting_head or a.halt_by == "residual"
    need(halts or not e.eval.stop_halted, "eval.stop_halted",
         "needs arch.halting_head = True or arch.halt_by = 'residual'")
    if a.supervision == "terminal":
        need(a.step_loss_decay == 1, "arch.step_loss_decay", "needs arch.supervision = 'deep'")
        need(a.test_H_cycles == 0, "arch.test_H_cycles", "needs arch.supervision = 'deep'")
        need(not a.halting_head, "arch.halting_head", "is trained by arch.supervision = 'deep' only")
        need(a.no_ACT_continue, "arch.no_ACT_continue", "needs arch.supervision = 'deep' and a halting head")
        return
    if not a.halting_head:
        need(a.no_ACT_continue, "arch.no_ACT_continue", "ACT needs arch.halting_head = True")
        need(halts or a.halt_exploration_prob == 0, "arch.halt_exploration_prob",
             "must be 0 without a halting head: every puzzle takes halt_max_steps steps")
    need(a.prob_detach_prev_H == 1, "arch.prob_detach_prev_H",
         "must be 1 with arch.supervision = 'deep': all cycles but the last are detached there")
    need(a.test_H_cycles >= 0, "arch.test_H_cycles", "must not be negative")
    need(a.test_H_cycles > 0 or not sum(e.curriculum_heads_to_add), "arch.test_H_cycles",
         "must be given where H grows with arch.supervision = 'deep': the outer cycles of a supervision step at the "
         f"end, {a.H_cycles + sum(e.curriculum_heads_to_add)}")
    for name in ("carry_share", "tail_prob"):
        need(getattr(e.deepen, name) == 0, f"deepen.{name}",
             "needs arch.supervision = 'terminal'; deep supervision has a carry of its own")
