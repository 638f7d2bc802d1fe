"""Names that people know from other trainers: some are taken for an option of ours, others get a hint by their
meaning.
"""
from __future__ import annotations

ALIASES = {
    "model_base": ("-m", "--model", "--model-name", "--model-name-or-path", "--model-path", "--base-model"),
    "train_data": ("--data", "--dataset", "--data-path", "--dataset-path", "--train-file", "-f", "--file"),
    "valid_data": ("--val-data", "--eval-data", "--validation-file"),
    "valid_split": ("--val-split", "--val-size"),
    "lora_out": ("-o", "--output"),
    "init_lora": ("--resume-adapter-file",),
    "adam_iter": ("--iters", "--num-iters", "--iterations", "--steps", "--max-steps"),
    "epochs": ("--num-epochs", "--n-epochs", "--num-train-epochs"),
    "batch": ("--batch-size", "--per-device-train-batch-size"),
    "grad_acc": ("--grad-accumulation-steps", "--gradient-accumulation-steps"),
    "ctx": ("--ctx-size", "--n-ctx", "--max-seq-length", "--max-seq-len", "--max-length", "--seq-length", "--seq-len",
            "--cutoff-len"),
    "adam_alpha": ("--lr", "--learning-rate"),
    "adam_min_alpha": ("--min-lr", "--lr-min"),
    "adam_decay": ("--weight-decay",),
    "adam_gclip": ("--max-grad-norm",),
    "schedule": ("--lr-scheduler-type", "--lr-scheduler"),
    "warmup": ("--warmup-steps",),
    "lora_dropout": ("--dropout",),
    "lora_plus": ("--loraplus-lr-ratio",),
    "beta": ("--pref-beta",),
    "label_smoothing": ("--label-smoothing-factor",),
    "train_on_prompt": ("--train-on-inputs",),
    "lora_r": ("-r", "--rank", "--lora-rank"),
    "lora_alpha": ("--alpha",),
    "dora": ("--use-dora",),
    "rslora": ("--use-rslora",),
    "targets": ("--target-modules", "--lora-target", "--lora-target-modules"),
    "layers": ("--num-layers", "--lora-layers"),
    "eval_every": ("--steps-per-eval", "--eval-steps"),
    "save_every": ("--save-steps",),
    "keep": ("--save-total-limit",),
    "force": ("--overwrite-output-dir",),
    "threads": ("--n-threads", "--num-threads"),
    "log_to": ("--report-to",),
    "pack": ("--packing",),
    "use_checkpointing": ("--gradient-checkpointing", "--grad-checkpoint"),
    "patience": ("--early-stopping-patience",),
    "data": ("--train-data", "--dataset", "--file", "-f"),
    "file": ("--text", "--data"),
    "n_predict": ("--max-tokens", "--max-new-tokens"),
    "system": ("--system-prompt",),
    "lora": ("--adapter", "--adapter-path"),
    "output": ("--out",),
}
"""Other trainers' names for options, by field. They work wherever a command has the field."""

HINTS = {
    "--train": "lorafast finetune always trains",
    "--test": "a folder given to --train-data may hold test.jsonl; its loss is reported at the end",
    "--test-data": "a folder given to --train-data may hold test.jsonl; its loss is reported at the end",
    "--mask-prompt": "prompts do not count in the loss, unless --train-on-prompt is given",
    "--train-on-responses-only": "this is what happens, unless --train-on-prompt is given",
    "--completion-only-loss": "this is what happens, unless --train-on-prompt is given",
    "--assistant-only-loss": "this is what happens, unless --train-on-prompt is given",
    "--load-best-model-at-end": "with evaluation, a name of --lora-out without ITERATION holds the best adapter",
    "--template": "the model's own chat template is used; --chat-template FILE names another",
    "--stage": "--method says what is trained by: sft, dpo, kto and others",
    "--do-train": "lorafast finetune always trains",
    "--finetuning-type": "LoRA adapters are trained, and with --dora DoRA adapters",
    "--fine-tune-type": "LoRA adapters are trained, and with --dora DoRA adapters",
    "--save-path": "--run FOLDER keeps everything of a run",
    "--output-dir": "--run FOLDER keeps everything of a run",
    "--run-name": "--run FOLDER keeps everything of a run, and is its name for --log-to",
    "--plot-loss": "--report FILE writes a page of plots; --run FOLDER has it anyway",
    "--load-in-4bit": "take a quantised GGUF file of the model for --model-base",
    "--load-in-8bit": "take a quantised GGUF file of the model for --model-base",
    "--quantization-bit": "take a quantised GGUF file of the model for --model-base",
    "--optim": "AdamW is the optimiser",
    "--optimizer": "AdamW is the optimiser",
    "--bf16": "weights stay as the file has them; --precision says what activations are rounded to",
    "--fp16": "weights stay as the file has them; --precision says what activations are rounded to",
    "--device": "lorafast runs on the CPU; --threads sets the number of threads",
    "--steps-per-report": "every iteration is logged; --metrics writes them to a file",
    "--scale": "the adapter's effect is scaled by --lora-alpha / --lora-r: give --lora-alpha that many times the rank",
    "--flash-attn": "attention is always fused",
    "--cpu": "lorafast runs on the CPU; --threads sets the number of threads",
    "--use-cpu": "lorafast runs on the CPU; --threads sets the number of threads",
    "--logging-steps": "every iteration is logged; --metrics writes them to a file",
    "--resume-from-checkpoint": "--resume goes on from the newest checkpoint, --checkpoint-in from that one",
    "--gpu": "there is no GPU path",
    "--gpus": "there is no GPU path",
    "--val-batches": "--eval-batches sets the number of batches to evaluate on",
    "--export-lora": "lorafast convert converts an adapter into another form, lorafast merge merges it",
}
"""What to say to a name that stands for something else here."""

HINTS_WITHOUT_FIELD = {
    "--adapter-path": "--run FOLDER keeps everything of a run; --lora-out names the adapter to write",
}
"""The same, for names that other commands take."""

COMMANDS = {"train": "finetune", "sft": "finetune", "lora": "finetune", "fine-tune": "finetune", "run": "generate",
            "chat": "generate --chat", "complete": "generate", "fuse": "merge", "export": "convert or merge",
            "evaluate": "eval", "score": "eval", "ppl": "perplexity", "show": "inspect", "info": "inspect",
            "estimate": "plan", "dry-run": "plan", "plot": "report", "verify": "check", "serve": "generate --chat"}
"""Commands that other programs call otherwise."""

MODULES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
           "up_proj": "ffn_up", "down_proj": "ffn_down", "lm_head": "output", "embed_tokens": "token_embd",
           "in_proj_qkv": "attn_qkv", "in_proj_z": "attn_gate", "in_proj_a": "ssm_alpha", "in_proj_b": "ssm_beta",
           "per_layer_input_gate": "inp_gate", "per_layer_projection": "proj", "all-linear": "attn,ffn"}
"""Targets as Hugging Face calls them."""
