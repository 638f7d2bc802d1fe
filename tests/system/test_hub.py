"""Files of the Hugging Face hub, with a hub of our own in place of huggingface_hub."""
import sys
import types

import pytest
from make_models import make_tiny

from lorafast import cli
from lorafast.errors import LoraFastError, UsageError
from lorafast.system.hub import local_path


@pytest.fixture
def hub(monkeypatch):
    """What is asked for is remembered; `names` are the files of every repository."""
    asked = []
    module = types.ModuleType("huggingface_hub")
    module.names = ["README.md", "tiny-Q2_K.gguf", "tiny-Q8_0.gguf"]
    module.HfApi = lambda: types.SimpleNamespace(list_repo_files=lambda repository: module.names)
    module.hf_hub_download = lambda repository, file: asked.append((repository, file)) or f"/cache/{file}"
    module.asked = asked
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_other_names_stay_as_they_are():
    assert local_path("model.gguf") == "model.gguf"


def test_a_file_by_name_or_the_one_that_fits(hub):
    assert local_path("hf:org/tiny:tiny-Q2_K.gguf") == "/cache/tiny-Q2_K.gguf"
    assert local_path("hf:org/tiny") == "/cache/tiny-Q8_0.gguf"
    hub.names = ["b.gguf", "a.gguf"]
    assert local_path("hf:org/tiny") == "/cache/a.gguf"
    assert hub.asked[0] == ("org/tiny", "tiny-Q2_K.gguf")


def test_inspect_takes_such_a_name(hub, tmp_path, capsys):
    hub.hf_hub_download = lambda repository, file: str(make_tiny(tmp_path / file))
    assert cli.main(["inspect", "hf:org/tiny"]) == 0
    assert "tiny-Q8_0.gguf: a base model" in capsys.readouterr().out


def test_what_cannot_be_fetched_is_one_line(hub, monkeypatch):
    with pytest.raises(UsageError, match=r"hf:ORGANISATION/NAME"):
        local_path("hf:tiny")
    hub.names = ["model.safetensors"]
    with pytest.raises(LoraFastError, match=r"has no GGUF file"):
        local_path("hf:org/tiny")

    def fail(*args):
        raise ConnectionError("no network\nat all")

    hub.hf_hub_download = fail
    with pytest.raises(LoraFastError, match=r"^hf:org/tiny:x.gguf: cannot be fetched, .* cache: no network$"):
        local_path("hf:org/tiny:x.gguf")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(LoraFastError, match=r"pip install 'lorafast\[hub\]'"):
        local_path("hf:org/tiny")
