"""What the next start puts right."""
import os

from lorafast.gguf.file_form import FileForm
from lorafast.options.outputs import Output
from lorafast.training.repair import remove_leftovers


def test_only_leftovers_of_the_same_outputs_go(tmp_path):
    ours = [".c-12.gguf.0123abcd.tmp", ".c-LATEST.gguf.0123abcd.tmp", ".run.toml.89abcdef.tmp"]
    others = [".d-12.gguf.0123abcd.tmp", "c-12.gguf.0123abcd.tmp", ".c-12.gguf.0123abc.tmp", "c-12.gguf",
              ".c-12.gguf.tmp"]
    for name in ours + others:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".p-7.0123abcd.tmp").mkdir()
    (tmp_path / ".p-7.0123abcd.tmp" / "adapter_config.json").write_bytes(b"")
    outputs = [Output("--checkpoint-out", f"{tmp_path}/c-ITERATION.gguf", FileForm.CHECKPOINT),
               Output("--lora-out", f"{tmp_path}/p-ITERATION/", FileForm.PEFT)]
    line, = remove_leftovers(outputs, [f"{tmp_path}/run.toml"])
    assert all(name in line for name in ours)
    assert sorted(os.listdir(tmp_path)) == sorted(others)
    assert not remove_leftovers(outputs, [])
