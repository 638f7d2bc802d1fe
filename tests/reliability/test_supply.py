"""What a run does beside computing: no network, no other program, no pickle, no code from data. Python's audit hooks
tell."""
import json
import subprocess
import sys
from pathlib import Path

from make_models import make_tiny

FORBIDDEN = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.__new__",
             "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
             "os.fork", "pickle.find_class",
             "ctypes.dlopen", "urllib.", "ftplib.", "smtplib.", "shutil.unpack_archive")
PROGRAM = """
import json, sys
import numpy, lorafast.api, lorafast.commands.finetune, lorafast.commands.generate, lorafast.commands.inspect
import lorafast.commands.merge, lorafast.commands.convert, lorafast.commands.report
seen, forbidden = [], tuple(json.loads(sys.argv[1]))

def hook(event, arguments):
    if event.startswith(forbidden):
        seen.append(event)
    if event in ("exec", "compile") and "/lorafast/" in sys._getframe(1).f_code.co_filename:
        seen.append(f"{event} by " + sys._getframe(1).f_code.co_filename)

sys.addaudithook(hook)
from lorafast import cli
from lorafast.planning import speed
speed.ENOUGH = 0.0
for argv in json.loads(sys.argv[2]):
    assert cli.main(argv) == 0, argv
sys.stderr.write("SEEN " + json.dumps(sorted(set(seen))))
"""


def test_nothing_but_files_is_touched(tmp_path):
    model = str(make_tiny(tmp_path / "tiny.gguf", n_layer=1))
    Path(tmp_path / "text.txt").write_text("the love of thy sweet all and not to thou " * 20)
    commands = [
        ["finetune", "--model-base", model, "--train-data", "text.txt", "--ctx", "16", "--batch", "2", "--adam-iter",
         "2", "--threads", "1", "--checkpoint-in", "", "--checkpoint-out", "c-ITERATION.gguf", "--lora-out",
         "a-ITERATION.bin", "--metrics", "m.jsonl"],
        ["finetune", "--model-base", model, "--train-data", "text.txt", "--ctx", "16", "--batch", "2", "--adam-iter",
         "1", "--threads", "1", "--checkpoint-in", "c-LATEST.gguf", "--checkpoint-out", "c-ITERATION.gguf",
         "--lora-out",
         "a-ITERATION.bin"],
        ["inspect", "c-LATEST.gguf"],
        ["convert", "a-LATEST.bin", "peft/", "--model-base", model, "--drop", "norms"],
        ["merge", "--model-base", model, "--lora", "a-LATEST.bin", "--output", "merged.gguf"],
        ["generate", "--model-base", model, "--lora", "a-LATEST.bin", "-p", "the", "-n", "2", "--threads", "1"],
    ]
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(FORBIDDEN), json.dumps(commands)], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stderr.rpartition("SEEN ")[2]) == []
