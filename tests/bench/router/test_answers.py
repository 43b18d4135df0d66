import json

from kvtier_bench.router import answers


def body(question: bytes) -> bytes:
    head, _, found = question.partition(b"\r\n\r\n")
    assert f"content-length: {len(found)}".encode() in head
    return found


def test_question_has_its_mark_and_a_prompt_of_two_kilobytes() -> None:
    found = body(answers.make_request(7))
    assert answers.find_mark(found) == answers.make_mark(7)
    assert len(json.loads(found)["prompt"]) == 2048
    assert "stream" not in json.loads(found)
    assert json.loads(body(answers.make_request(7, stream="idle")))["stream"] is True


def test_prompts_of_a_group_share_a_prefix_and_differ() -> None:
    first, other, same = (json.loads(body(answers.make_request(n)))["prompt"] for n in (1, 2, 17))
    assert first[:1024] == same[:1024] != other[:1024]
    assert first[1024:] != same[1024:]


def test_answer_depends_on_its_mark() -> None:
    assert json.loads(answers.whole_answer(answers.make_mark(1)))["id"].endswith("1")
    assert answers.whole_answer(answers.make_mark(1)) != answers.whole_answer(answers.make_mark(2))
    stream = answers.stream_body(answers.make_mark(1))
    assert stream.count(b"data: ") == answers.CHUNKS + 1
    assert stream.endswith(b"data: [DONE]\n\n")
