"""Options: defaults, parsing, checks, the adapted set, and the help."""
import dataclasses
import shlex

import pytest

from lorafast.errors import UsageError
from lorafast.gguf.file_form import ADAPTER_FORMS
from lorafast.gguf.roles import LLAMA_FINETUNE_ROLES, ROLES
from lorafast.network.lora import default_ranks
from lorafast.options.declare import HELP_WIDTH, help_text, parse, to_argv
from lorafast.options.finetune import ATTENTION, FEED_FORWARD, NORMS, RANK_FIELDS, FinetuneConfig, decode_escapes
from lorafast.options.use import GenerateConfig, PerplexityConfig

SEED_RUN = """--model-base Llama-2-7b.Q8_0.gguf --checkpoint-in shakespeare-LATEST.gguf
    --checkpoint-out shakespeare-ITERATION.gguf --lora-out shakespeare-ITERATION.bin --train-data "shakespeare.txt"
    --save-every 10 --threads 6 --adam-iter 30 --batch 4 --ctx 64 --no-checkpointing --no-flash"""


def finetune(line: str) -> FinetuneConfig:
    return parse(FinetuneConfig, shlex.split("--model-base m.gguf " + line))


def message(line: str, cls=FinetuneConfig) -> str:
    with pytest.raises(UsageError) as error:
        parse(cls, shlex.split(line))
    assert "\n" not in str(error.value) and error.value.exit_status == 2
    return str(error.value)


def test_the_command_that_started_it():
    config = parse(FinetuneConfig, shlex.split(SEED_RUN))
    assert config == FinetuneConfig(
        model_base="Llama-2-7b.Q8_0.gguf", checkpoint_in="shakespeare-LATEST.gguf",
        checkpoint_out="shakespeare-ITERATION.gguf", lora_out=("shakespeare-ITERATION.bin",), threads=6, adam_iter=30,
        batch=4, ctx=64, use_checkpointing=False)
    assert parse(FinetuneConfig, to_argv(config)) == config


def test_defaults_are_the_originals():
    config = FinetuneConfig(model_base="m.gguf")
    expected = dict(
        lora_out=("ggml-lora-ITERATION-f32.gguf",), only_write_lora=False, train_data=("shakespeare.txt",),
        checkpoint_in="checkpoint.gguf", checkpoint_out="checkpoint-ITERATION.gguf", pattern_fn_it="ITERATION",
        fn_latest="LATEST", save_every=10, seed=-1, ctx=128, batch=8, grad_acc=None, epochs=-1, sample_start="",
        include_sample_start=False, escape=False, overlapping_samples=False, fill_with_next_samples=False,
        separate_with_eos=False, separate_with_bos=True, sample_random_offsets=False, force_reshuffle=False,
        use_flash=False, use_checkpointing=None, n_gpu_layers=0, adam_iter=None, adam_alpha=0.001, adam_min_alpha=0.0,
        adam_decay=0.1, adam_decay_min_ndim=2, adam_beta1=0.9, adam_beta2=0.999, adam_gclip=1.0, adam_epsf=0.0,
        warmup=100, cos_decay_steps=1000, cos_decay_restart=1.1, cos_decay_min=0.1, enable_restart=False, opt_past=0,
        opt_delta=1e-5, opt_max_no_improvement=0, lora_r=4, alpha=4, norm_rms_eps=None, rope_freq_base=None,
        rope_freq_scale=None)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("line, expected", [
    ("--train_data x --adam_iter 3", dict(train_data=("x",), adam_iter=3)),
    ("--rank-ffn_gate 7 --rank_ffn-down 8 --rank-ffn-up 9", dict(rank_ffn_gate=7, rank_ffn_down=8, rank_ffn_up=9)),
    ("-s 3 -c 5 -t 6 -b 7 -ngl 8", dict(seed=3, ctx=5, threads=6, batch=7, n_gpu_layers=8)),
    ("--ctx 5 --ctx 6", dict(ctx=6)),
    ("--ctx=5 --sample-start=a=b", dict(ctx=5, sample_start="a=b")),
    ("--train-data --ctx --sample-start -h", dict(train_data=("--ctx",), sample_start="-h")),
    ("--epochs -5 --seed -1 --adam-iter 0", dict(epochs=-5, seed=-1, adam_iter=0)),
    ("--lora-out a.bin --lora-out b/ --lora-out ''", dict(lora_out=("a.bin", "b/", ""))),
    ("--no-separate-with-bos --separate-with-eos", dict(separate_with_bos=False, separate_with_eos=True)),
    ("--use-flash --no-flash --use-checkpointing", dict(use_flash=False, use_checkpointing=True)),
    ("--enable-restart --disable-restart", dict(enable_restart=False)),
    ("--adam-alpha 1e-4 --adam-gclip -1", dict(adam_alpha=1e-4, adam_gclip=-1.0)),
    ("--lora-r 8", dict(lora_r=8, alpha=8)),
    ("--lora-r 8 --lora-alpha 16", dict(lora_r=8, alpha=16)),
    ("--grad-acc 0", dict(n_acc=1)),
    ("--escape --sample-start '\\n\\x41'", dict(start_text="\nA")),
    ("--sample-start '\\n'", dict(start_text="\\n")),
])
def test_parsing(line, expected):
    config = finetune(line)
    assert {name: getattr(config, name) for name in expected} == expected
    assert parse(FinetuneConfig, to_argv(config)) == config


@pytest.mark.parametrize("line, parts", [
    ("--ctx 12abc", ("--ctx 12abc", "whole number")),
    ("--ctx 1_0", ("--ctx 1_0", "whole number")),
    ("--ctx ''", ("--ctx", "whole number")),
    ("--adam-alpha 0.1x", ("--adam-alpha 0.1x", "number")),
    ("--adam-alpha nan", ("--adam-alpha nan", "number")),
    ("--adam-alpha inf", ("--adam-alpha inf", "number")),
    ("--adam-iter 1.5", ("--adam-iter 1.5", "whole number")),
    ("--ctx 0", ("--ctx 0", "at least 1")),
    ("--batch 1000000000 --ctx 32", ("--batch 1000000000, --ctx 32", "32000000000 tokens", "at most 2147483647")),
    ("--threads 0", ("--threads 0", "at least 1")),
    ("--seed 4294967296", ("--seed 4294967296", "4294967295")),
    ("--adam-beta1 1", ("--adam-beta1 1", "below 1")),
    ("--adam-iter -1", ("--adam-iter -1", "at least 0")),
    ("--pattern-fn-it ''", ("--pattern-fn-it", "some text")),
    ("--adam-min-alpha 1", ("--adam-min-alpha", "--adam-alpha")),
    ("--ctx", ("--ctx", "needs a value")),
    ("--use-flash=1", ("--use-flash", "no value")),
    ("--cxt 3", ("unknown option --cxt", "did you mean --ctx?")),
    ("--train_dat x", ("did you mean --train-data?",)),
    ("--oxt x", ("unknown option --oxt (--help-all lists every option)",)),
    ("--adam 3", ("unknown option --adam",)),
    ("stray", ("unexpected argument 'stray'",)),
    ("--enable-restart 3", ("unexpected argument '3'",)),
    ("--lora-out a.txt", ("--lora-out a.txt", ".gguf", ".bin")),
    ("--lora-out /", ("--lora-out /", "add a name")),
    ("--lora-out a/../", ("--lora-out a/../", "add a name")),
    ("--report ./", ("--report ./", "add a name")),
    ("--targets attn_x", ("--targets", "attn_x", "did you mean attn_")),
    ("--targets attn_q --rank-wv 3", ("--rank-wv 3", "attn_v", "--targets attn_q")),
    ("--targets attn_q --rank-wq 0", ("every rank is 0",)),
])
def test_bad_values_are_refused_in_words(line, parts):
    text = message("--model-base m.gguf " + line)
    assert all(part in text for part in parts), text


def test_model_is_required():
    assert "--model-base" in message("")
    assert "--model-base" in message("--prompt x", GenerateConfig)


def test_help_anywhere_but_not_as_a_value():
    assert parse(FinetuneConfig, ["--ctx", "3", "-h"]) is None
    assert parse(FinetuneConfig, ["--help"]) is None


@pytest.mark.parametrize("cls", [FinetuneConfig, GenerateConfig, PerplexityConfig])
def test_help_shows_every_option_in_80_columns(cls):
    lines = help_text(cls).splitlines()
    assert max(map(len, lines)) <= HELP_WIDTH
    for name in (field.name for field in dataclasses.fields(cls)):
        assert "--" + name.replace("_", "-") in " ".join(lines)


def test_seed():
    assert finetune("-s 5").resolve_seed() == 5
    for line in ("", "-s -1", "-s 4294967295"):
        assert 1_700_000_000 < finetune(line).resolve_seed() < 2**32


def test_threads_default_to_at_least_one_core():
    assert finetune("").n_threads >= 1
    assert finetune("-t 3").n_threads == 3


# Which tensors are adapted

SEVEN = {role: 4 if role in ATTENTION + FEED_FORWARD else 0 for role in ROLES}


def test_rank_fields_are_all_roles_in_order():
    assert tuple(RANK_FIELDS) == tuple(role.name for role in LLAMA_FINETUNE_ROLES)


@pytest.mark.parametrize("line, expected", [
    ("--lora-out a.bin", default_ranks(4)),
    ("--lora-out a.bin --lora-out b.bin --lora-r 8", default_ranks(8)),
    ("--lora-out ''", default_ranks(4)),
    ("", SEVEN),
    ("--lora-out a.bin --lora-out b.gguf", SEVEN),
    ("--lora-out a/", SEVEN),
    ("--lora-out '' --dora", SEVEN),
    ("--rank-out 3 --rank-wq 0", {**SEVEN, "output": 3, "attn_q": 0}),
    ("--lora-out a.bin --rank-att-norm 0 --rank-wo 2", {**default_ranks(4), "attn_norm": 0, "attn_output": 2}),
    ("--targets attn", {role: 4 if role in ATTENTION else 0 for role in ROLES}),
    ("--targets attn_q,norms --rank-wq 2", {role: {"attn_q": 2}.get(role, int(role in NORMS)) for role in ROLES}),
    ("--targets 'blk.1?.ffn_*.weight'",
     {role: 4 if role in FEED_FORWARD else int(role == "ffn_norm") for role in ROLES}),
])
def test_ranks(line, expected):
    ranks = finetune(line).ranks_by_role()
    assert ranks == expected and list(ranks) == list(ROLES)


def test_target_list():
    assert finetune("").target_list() is None
    assert finetune("--targets 'attn, blk.3.*'").target_list() == ("attn", "blk.3.*")


def test_forms():
    assert finetune("--lora-out a.BIN --lora-out b-ITERATION.gguf --lora-out c/").forms() == set(ADAPTER_FORMS)


@pytest.mark.parametrize("line, tied, parts", [
    ("--rank-att-norm 2", False, ("--rank-att-norm 2", "GGUF adapter", "norms", ".bin")),
    ("--targets norms,attn --lora-out a/", False, ("--targets norms,attn", "PEFT adapter", "norms")),
    ("--rank-tok-embd 2", True, ("--rank-tok-embd 2", "token_embd")),
    ("--rank-out 2", True, ("--rank-out 2", "no output.weight")),
    ("--rank-out 2 --lora-out a.bin", True, ("--rank-out 2", "no output.weight")),
])
def test_what_cannot_be_had_is_refused(line, tied, parts):
    config = finetune(line)
    roles = [role for role, rank in config.ranks_by_role().items() if rank and not (tied and role == "output")]
    with pytest.raises(UsageError) as error:
        config.check_adapted(roles, tied=tied)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize("line, parts", [
    ("--dora", ("--dora: --lora-out ggml-lora-ITERATION-f32.gguf: a GGUF adapter cannot carry", "NAME/", "merge")),
    ("--dora --lora-out a/ --lora-out b.bin", ("--dora: --lora-out b.bin: a ggla adapter cannot carry",)),
    ("--dora --lora-out a/ --targets all", ("--dora: output_norm is not a matrix", "leave norms out")),
    ("--dora --lora-out a/ --rank-att-norm 1", ("--dora: attn_norm is not a matrix",)),
    ("--dora --lora-out a/ --init-lora b/", ("--dora: --init-lora brings its own",)),
])
def test_where_dora_makes_no_sense(line, parts):
    with pytest.raises(UsageError) as error:
        finetune(line)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_an_adapter_with_magnitudes_to_start_from_needs_a_form_that_carries_them():
    with pytest.raises(UsageError, match=r"--init-lora a/: --lora-out b.gguf: a GGUF adapter cannot carry"):
        finetune("--init-lora a/ --lora-out b.gguf").check_adapted(ATTENTION, tied=False, dora=True)
    finetune("--init-lora a/ --lora-out b/").check_adapted(ATTENTION, tied=False, dora=True)


@pytest.mark.parametrize("line, tied", [
    ("--lora-out a.bin", True), ("--lora-out a.bin", False), ("", True), ("--rank-tok-embd 2 --rank-out 2", False),
])
def test_what_can_be_had_is_not(line, tied):
    config = finetune(line)
    config.check_adapted([role for role, rank in config.ranks_by_role().items()
                          if rank and not (tied and role == "output")], tied=tied)


def test_resume_command_goes_on_with_the_same_options():
    config = finetune("--train-data 'my text.txt' --checkpoint-in old.gguf --adam-iter 30 --ctx 64 --force-reshuffle")
    line = config.resume_command("ck-LATEST.gguf", 12)
    assert shlex.split(line)[:2] == ["lorafast", "finetune"]
    assert parse(FinetuneConfig, shlex.split(line)[2:]) == finetune(
        "--train-data 'my text.txt' --checkpoint-in ck-LATEST.gguf --adam-iter 12 --ctx 64")


def test_resume_command_names_what_is_left_of_epochs():
    line = finetune("--epochs 5 --preset modern").resume_command("c.gguf", None, 2)
    going_on = parse(FinetuneConfig, shlex.split(line)[2:])
    assert going_on == finetune("--epochs 2 --checkpoint-in c.gguf --preset modern") and going_on.adam_iter is None


@pytest.mark.parametrize("line, path", [
    ("", "ggml-lora-options-f32.toml"),
    ("--lora-out out/a-ITERATION/ --lora-out b.bin", "out/a-options.toml"),
    ("--lora-out b.gguf", "b-options.toml"),
    ("--lora-out '' --checkpoint-out x/c-ITERATION.gguf", "x/c-options.toml"),
    ("--pattern-fn-it NN --lora-out a.NN.bin", "a.options.toml"),
    ("--lora-out '' --checkpoint-out ''", "None"),
])
def test_where_the_options_are_recorded(line, path):
    assert str(finetune(line).options_path) == path


@pytest.mark.parametrize("line, path", [
    ("", ""), ("--metrics m.jsonl --report r.html", "m.jsonl"), ("--report x/r.html", "x/r.jsonl")])
def test_a_report_needs_metrics(line, path):
    assert finetune(line).metrics_path == path


@pytest.mark.parametrize("line, interval", [("", 10), ("--save-every 3", 3), ("--save-every -1", 0),
                                            ("--eval-every 7", 7)])
def test_evaluation_interval(line, interval):
    assert finetune(line).evaluation_interval(12) == interval


@pytest.mark.parametrize("line, end, interval", [
    ("", 12, 3), ("", 4, 1), ("", 50, 10), ("", 1000, 10), ("--eval-every 7", 12, 7), ("--save-every 0", 12, 0)])
def test_a_short_run_with_todays_defaults_is_evaluated_more_often(line, end, interval):
    assert finetune(f"--preset modern {line}").evaluation_interval(end) == interval


def test_a_preset_brings_its_values_or_is_refused():
    with pytest.raises(UsageError, match=r"'modern' is for lorafast.finetune.*adam_alpha, .*lora_r"):
        FinetuneConfig(model_base="m.gguf", preset="modern", ctx=64)
    config = FinetuneConfig.complete(dict(model_base="m.gguf", preset="modern", ctx=64))
    assert (config.ctx, config.lora_r) == (64, 16) and dataclasses.replace(config, lora_r=2).ctx == 64


def test_rslora_scales_by_the_square_root():
    assert finetune("--rslora --lora-r 16 --lora-alpha 8").alpha / 16 == 8 / 4


def test_escapes():
    assert decode_escapes(r"a\n\r\t\'\"\\\x41\q\x4") == "a\n\r\t'\"\\A\\q\\x4"
    assert decode_escapes(r"\xc3\xa4") == "ä"
    assert decode_escapes(r"\xff").encode("utf-8", "surrogateescape") == b"\xff"
    assert decode_escapes("ä") == "ä"
