"""What ranks tell each other, and how they end together."""
import pytest
from thread_ranks import on_ranks

from lorafast.distributed.agreement import refuse_differences
from lorafast.distributed.launcher import launched_size, local_rank
from lorafast.distributed.transport import LostRanks
from lorafast.distributed.world import AgreedError, AgreedUsageError, World, alone
from lorafast.errors import LoraFastError, UsageError


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_gathering(size):
    values = [rank * "long text " * 100 for rank in range(size)]
    assert on_ranks(size, lambda world: world.gather(values[world.rank])) == [values] * size
    assert on_ranks(size, lambda world: world.from_first(world.rank + 7)) == [7] * size


def test_work_is_shared_out_in_order():
    for size in (1, 2, 3, 7):
        shares = on_ranks(size, lambda world: [world.share(8, rank) for rank in range(world.size)])[0]
        assert [i for share in shares for i in share] == list(range(8))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_rank_alone_needs_nobody():
    world = alone()
    assert world.is_first and world.gather("x") == ["x"] and world.n_local == 1
    with pytest.raises(UsageError, match=r"^as it is$"), world.failing_together():
        raise UsageError("as it is")


def test_an_error_of_one_rank_ends_all_with_the_same_line():
    def run(world: World) -> None:
        with world.failing_together():
            world.gather("begin")
            if world.rank == 1:
                raise UsageError("the disk is full")
            world.gather("a value")

    errors = on_ranks(3, run)
    assert all(isinstance(error, AgreedUsageError) and error.exit_status == 2 for error in errors)
    assert {str(error).partition(": ")[2] for error in errors} == {"the disk is full"}
    assert str(errors[0]).startswith("rank 1 on ")


def test_an_error_that_all_have_names_no_rank():
    def run(world: World) -> None:
        with world.failing_together():
            raise LoraFastError("cannot read model.gguf")

    assert [str(error) for error in on_ranks(2, run)] == ["cannot read model.gguf"] * 2


def test_a_rank_that_is_silent_is_named(capsys):
    def run(world: World) -> object:
        if world.rank == 2:
            return None
        with world.failing_together():
            world.gather("anybody")
        return world.transport.aborted

    assert on_ranks(3, run, timeout=0.2)[:2] == [1, 1]
    assert "rank 2 on" in capsys.readouterr().err


def test_lost_ranks_are_numbered():
    assert LostRanks([1, 3], 5).ranks == (1, 3)


def test_what_differs_is_named_with_its_rank():
    def run(world: World) -> None:
        refuse_differences(world, {"version": "1", "model": "a" if world.rank < 2 else "b"}, "copy it anew")

    errors = on_ranks(3, run)
    assert all("rank 2 on" in str(error) and "model b, but rank 0" in str(error) for error in errors)
    assert on_ranks(2, run) == [None, None]
    assert not any(isinstance(error, AgreedError) for error in errors)


@pytest.mark.parametrize("environment, size, local", [
    ({}, 1, 0),
    ({"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALRANKID": "1"}, 4, 1),
    ({"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}, 3, 2),
    ({"PMIX_RANK": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}, 8, 1),
    ({"SLURM_STEP_NUM_TASKS": "8"}, 1, 0),
])
def test_launchers_are_known_by_their_environment(environment, size, local):
    assert launched_size(environment) == size
    assert local_rank(environment) == local
