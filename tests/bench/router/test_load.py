"""The load generator's parser and checks: answers in any pieces, and answers with a wrong byte."""

import pytest

from kvtier_bench.router import answers
from kvtier_bench.router.load import AnswerParser, LoadOrder, LoadTally


def fed(raw: bytes, piece: int) -> AnswerParser:
    answer = AnswerParser()
    for start in range(0, len(raw), piece):
        answer.feed(raw[start : start + piece])
    return answer


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_parser_accepts_answers_in_any_pieces(piece: int) -> None:
    sized = fed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", piece)
    assert (sized.status, bytes(sized.body), sized.done) == (200, b"hello", True)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = fed(head + b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", piece)
    assert (bytes(chunked.body), chunked.done) == (b"hello", True)
    assert not fed(head + b"3\r\nhel\r\n", piece).done
    assert fed(b"HTTP/1.1 204 No Content\r\n\r\n", piece).done


def test_parser_rejects_invalid_http() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        fed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 100)


def test_tally_counts_an_answer_that_differs_by_one_byte() -> None:
    tally = LoadTally(LoadOrder(port=1, kind="whole", clients=1))
    answer = AnswerParser()
    answer.status = 200
    answer.body = bytearray(answers.whole_answer(answers.make_mark(3)))
    tally.judge(3, answer)
    assert (tally.wrong, tally.failed) == (0, 0)
    tally.judge(4, answer)
    assert (tally.wrong, tally.failed) == (1, 0)
    answer.status = 503
    tally.judge(3, answer)
    assert tally.failed == 1
    assert tally.complaint.startswith("200")
