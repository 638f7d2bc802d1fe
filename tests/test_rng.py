"""lorafast.rng against test vectors of libstdc++, and against the machine's own C++ library where it is that one."""
import shutil
import subprocess
import time

import numpy as np
import pytest

from lorafast.data.samples import string_hash
from lorafast.errors import FormatError
from lorafast.rng import MT19937, NormalDistribution

# First normal draws of libstdc++ by seed.
NORMAL = {
    1720093158: [-0.0435675085, 0.717454433, -0.976654589, 0.704274118, -0.351218522, 1.10157681, -1.22100687,
                 0.549649894],
    42: [1.22192132, -0.516964138, 0.86963594, 0.721332669, 1.58855629, 1.61821711, -0.187124684, -1.18830872],
}


@pytest.mark.parametrize("seed", NORMAL)
def test_normal_vectors(seed):
    np.testing.assert_array_equal(NormalDistribution(MT19937(seed)).draw(8), np.array(NORMAL[seed], np.float32))


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1])
def test_uniform_vectors(seed):
    # The C++ standard gives the 10,000th value for the default seed, 5489; NumPy's legacy seeding is the same.
    assert MT19937(5489).draw(10_000)[-1] == 4123659995
    expected = np.random.RandomState(seed).randint(0, 2**32, 2000, dtype=np.uint32)
    np.testing.assert_array_equal(MT19937(seed).draw(2000), expected)


def test_draws_do_not_depend_on_how_they_are_split():
    whole_rng, split_rng = MT19937(3), MT19937(3)
    whole, split = NormalDistribution(whole_rng), NormalDistribution(split_rng)
    pieces = [split.draw(n) for n in (0, 1, 2, 0, 5, 1, 1, 300, 690)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole.draw(1000))
    assert split_rng.state_text() == whole_rng.state_text()
    big = MT19937(3).draw((1 << 20) + 7)   # more than one block
    np.testing.assert_array_equal(big[-7:], np.random.RandomState(3).randint(0, 2**32, big.size, dtype=np.uint32)[-7:])


def test_state_text():
    rng = MT19937(1720093158)
    text = rng.state_text()
    assert len(text) == 6706
    assert text.startswith("1720093158 2888959780 4019857408 1666212914 ") and text.endswith(" 232735442 624")
    rng.draw(1000)
    assert rng.state_text().endswith(" 376")   # 1000 - 624
    resumed, copied = MT19937.from_text(rng.state_text()), rng.copy()
    expected = rng.draw(1000)
    np.testing.assert_array_equal(resumed.draw(1000), expected)
    np.testing.assert_array_equal(copied.draw(1000), expected)


def test_seed_is_taken_modulo_2_to_the_32():
    assert MT19937(2**32 + 5).state_text() == MT19937(5).state_text()


WHOLE = MT19937(1).state_text()


@pytest.mark.parametrize("text", [
    "", "1 2 3", "not a state", WHOLE + " 7", WHOLE + "5",
    WHOLE.replace("1 ", "4294967296 ", 1), WHOLE.replace("1 ", "-1 ", 1),
    pytest.param(WHOLE.replace("1 ", "9" * 5000 + " ", 1), id="a number too long for int()"),
])
def test_broken_state_text(text):
    with pytest.raises(FormatError, match="random generator's state"):
        MT19937.from_text(text)


def test_draws_are_quick():
    start = time.process_time()
    NormalDistribution(MT19937(1)).draw(500_000)   # a tenth of the A matrices of a 7B model at rank 4
    assert time.process_time() - start < 1   # measured: 0.1 s


CPP = r"""
#include <cstdio>
#include <functional>
#include <iostream>
#include <random>
#include <string>
int main(int, char **argv) {
#ifndef __GLIBCXX__
    return 1;
#endif
    std::mt19937 rng(std::stoul(argv[1]));
    std::normal_distribution<float> normal;
    float x;
    for (long n = std::stol(argv[2]); n > 0; n--) { x = normal(rng); std::fwrite(&x, 4, 1, stdout); }
    std::cerr << std::hash<std::string>()(argv[3]) << ' ' << rng;
}
"""


@pytest.fixture(scope="module")
def cpp(tmp_path_factory):
    compiler = shutil.which("g++") or pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "draw.cpp").write_text(CPP)
    subprocess.run([compiler, "-O1", "draw.cpp", "-o", "draw"], cwd=folder, check=True)

    def run(seed, n, text):
        result = subprocess.run([folder / "draw", str(seed), str(n), text], capture_output=True)
        if result.returncode:
            pytest.skip("the C++ library is not libstdc++")
        text_hash, state = result.stderr.decode().split(" ", 1)
        return np.frombuffer(result.stdout, np.float32), int(text_hash), state

    return run


@pytest.mark.parametrize("seed, n, text", [(1, 200_001, "data.txt"), (2**32 - 1, 1000, "a longer näme"), (0, 0, "")])
def test_equal_to_the_cpp_library(cpp, seed, n, text):
    values, text_hash, state = cpp(seed, n, text)
    rng = MT19937(seed)
    np.testing.assert_array_equal(NormalDistribution(rng).draw(n), values)
    assert rng.state_text() == state
    assert string_hash(text.encode()) == text_hash
