"""The server over real sockets: what it answers, whom it refuses, and that nothing of it grows or hangs."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection

import httpx
import pytest
from PIL import Image
from server_support import TOKEN, error_of

from edgekiln.runtime import ImageError, load

BEARER = f"Authorization: Bearer {TOKEN}\r\n".encode()
LONG = 300 * "b"
HOST = b"Host: 127.0.0.1\r\n"


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


# -- answers


def test_a_picture_gets_the_runtimes_own_answer(client, bundle, photo):
    for variant in ("fp32", "int8"):
        with load(bundle, variant=variant, threads=1) as classifier:
            expected = classifier.predict(photo)
        sent = photo.read_bytes()
        response = client.post("/predict", params={"variant": variant, "top": 2}, content=sent)
        assert response.status_code == 200
        document = response.json()
        assert document["variant"]["name"] == variant
        [answer] = document["answers"]
        assert answer["label"] == expected.label
        assert answer["score"] == pytest.approx(
            expected.score, abs=1e-6
        )  # another batch size may round otherwise
        assert [c["label"] for c in answer["top"]] == [c.label for c in expected.top(2)]
        assert answer["times"].keys() == {"decode_ms", "wait_ms", "engine_ms", "batch"}
        assert answer["times"]["decode_ms"] > 0


def test_the_files_of_a_form_are_answered_in_their_order_and_a_broken_one_alone_fails(client, tiny_run):
    folder = tiny_run[0].parent / "pictures"
    paths = [folder / color / "001.png" for color in ("red", "blue", "green")]
    files = [("p", (path.parent.name, path.read_bytes())) for path in paths]
    files.insert(1, ("p", ("broken ü.jpg", b"\xff\xd8\xff nothing")))
    document = client.post("/predict", files=files).json()
    assert document["ok"] is True
    assert [a["name"] for a in document["answers"]] == ["red", "broken ü.jpg", "blue", "green"]
    assert document["answers"][1]["error"]["code"] == "image"
    assert all("label" in document["answers"][i] for i in (0, 2, 3))


def test_a_request_of_more_pictures_than_the_queue_holds_waits_for_itself(start, bundle, photo):
    server = start(bundle, "--max-queue", "2", "--max-batch", "2")
    with server.client() as client:
        files = [("p", ("x", photo.read_bytes())), ("p", ("x", photo.read_bytes())), ("p", ("x", b"broken"))]
        answers = client.post("/predict", files=files * 7).json()["answers"]
    assert ["label" in answer for answer in answers] == [True, True, False] * 7
    assert {answer["error"]["code"] for answer in answers[2::3]} == {"image"}


def test_the_page_and_the_info_tell_what_is_served(client, bundle):
    info = client.get("/info").json()
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert info["bundle"]["name"] == "tiny"
    assert info["classes"] == manifest["contract"]["classes"]
    assert [variant["name"] for variant in info["variants"]] == ["fp32", "int8"]
    page = client.get("/")
    assert page.status_code == 200
    assert not re.findall(r"(?:src|href)=\"?https?:", page.text)
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(f"/{name}").status_code == 200, name


def test_head_is_answered_without_a_body(client):
    response = client.head("/healthz")
    assert (response.status_code, response.content) == (200, b"")


# -- broken pictures and requests


@pytest.mark.parametrize("cut", [5, 40, 200, None])
def test_a_broken_picture_is_refused_with_the_runtimes_error(client, bundle, photo, cut):
    body = b"no picture at all" if cut is None else photo.read_bytes()[:cut]
    with load(bundle, threads=1) as classifier, pytest.raises(ImageError) as expected:
        classifier.predict(body)
    response = client.post("/predict", content=body)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (422, "image")
    assert (error["reason"], error["message"]) == (expected.value.reason, expected.value.message)
    assert response.json()["answers"][0]["error"] == error


def test_a_picture_of_too_many_pixels_is_too_large(client, tmp_path):
    Image.new("1", (10_000, 6_000)).save(tmp_path / "large.png")
    response = client.post("/predict", content=(tmp_path / "large.png").read_bytes())
    assert (response.status_code, error_of(response)["reason"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        ({"content": b"x", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 415, "type"),
        ({"content": b"{}", "headers": {"Content-Type": "application/json"}}, 415, "type"),
        ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 415, "type"),
        ({"content": b""}, 400, "length"),
        ({"content": bytes(300_001)}, 413, "size"),
        ({"content": iter([bytes(100_000)] * 4)}, 413, "size"),  # chunked: no length is declared
        ({"files": [("p", ("x", b"x"))] * 5}, 413, "pictures"),
        ({"files": [("p", (None, b"a field that is no file"))]}, 400, "multipart"),
        ({"content": b"--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "pictures"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "multipart"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=" + LONG}}, 400, "multipart"),
        ({"content": b"--b\r\nContent-Disposition: form-data; name=p; filename=f\r\n\r\nabc",
          "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "multipart"),  # cut off
        ({"content": b"x", "params": {"top": "0"}}, 400, "query"),
        ({"content": b"x", "params": {"top": "\u0663"}}, 400, "query"),
        ({"content": b"x", "params": {"varint8": "int8"}}, 400, "query"),
        ({"content": b"x", "params": {"variant": "int4"}}, 400, None),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_meant_is_refused_with_its_reason(client, options, status, reason):
    response = client.post("/predict", **options)
    error = error_of(response)
    assert (response.status_code, error["reason"]) == (status, reason)
    assert error["code"] == ("request" if reason else "usage")
    assert error["hint"] or reason in {"query", "slow"}


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/page/../page.js",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.css/",
        "//etc/passwd",
        "/docs",
    ],
)
def test_no_other_file_can_be_asked_for(server, path):
    with server.raw(b"GET " + path.encode() + b" HTTP/1.1\r\n" + HOST + BEARER + b"\r\n") as connection:
        assert connection.status() == 404


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/predict"), ("OPTIONS", "/predict"), ("PUT", "/"), ("TRACE", "/info")]
)
def test_other_methods_are_refused_and_no_other_site_is_invited(client, method, path):
    response = client.request(method, path, headers={"Access-Control-Request-Method": "POST"})
    assert (response.status_code, error_of(response)["reason"]) == (405, "method")
    assert response.headers["allow"]
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("request_line", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"])
def test_what_is_no_http_gets_no_further(server, request_line):
    with server.raw(request_line) as connection:
        answer = connection.read()
    assert answer == b"" or answer.split(b" ", 2)[1] == b"400"


def test_a_huge_header_is_refused(server):
    with server.raw(b"GET / HTTP/1.1\r\n" + HOST + b"X-Long: ") as connection:
        sent = count_taken(connection)
    assert sent < 10 * 2**20  # what fits into the system's buffers before the connection is cut


def count_taken(connection):
    """How many bytes a connection takes before it is cut; 100 MB at most."""
    for number in range(1000):
        try:
            connection.send(bytes(100_000))
        except OSError:
            return number * 100_000
        time.sleep(0.001)
    return 100_000_000


def test_a_declared_size_is_refused_before_it_is_sent(server):
    head = (
        b"POST /predict HTTP/1.1\r\n"
        + HOST
        + BEARER
        + b"Content-Length: 999999999\r\nExpect: 100-continue\r\n\r\n"
    )
    with server.raw(head) as connection:
        assert connection.status() == 413


# -- slow clients


def test_a_head_that_does_not_come_is_not_waited_for(server):
    """Slowloris: many connections that each send a byte now and then keep nobody out."""
    slow = [server.raw(b"GET / HT") for _ in range(20)]
    silent = [server.raw(b"") for _ in range(20)]
    begun = time.monotonic()
    ended = set()
    while len(ended) < 40:
        assert time.monotonic() - begun < 15, "still open"
        for connection in slow[:10]:
            if connection not in ended:
                try:
                    connection.send(b"x")
                except OSError:
                    ended.add(connection)
        for connection in (*slow, *silent):
            connection.socket.setblocking(False)
            try:
                if connection.socket.recv(1000) == b"":
                    ended.add(connection)
            except BlockingIOError:
                pass
            except OSError:
                ended.add(connection)
        time.sleep(0.02)
    with server.client() as client:
        assert client.get("/healthz").status_code == 200
    for connection in (*slow, *silent):
        connection.socket.close()


def test_a_next_head_on_the_same_connection_is_not_waited_for_either(server):
    with server.raw(b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n") as connection:
        assert connection.status() == 200
        connection.send(b"GET /hea")
        assert connection.read() == b""  # closed


def test_a_body_that_does_not_come_is_answered_with_a_timeout(server):
    head = b"POST /predict HTTP/1.1\r\n" + HOST + BEARER + b"Content-Length: 1000\r\n\r\n"
    with server.raw(head + b"only this") as connection:
        answer = connection.read()
    assert answer.split(b" ", 2)[1] == b"408"
    assert b'"reason":"slow"' in answer


def test_a_client_that_goes_away_leaves_nothing(server, client, photo):
    for _ in range(10):
        head = b"POST /predict HTTP/1.1\r\n" + HOST + BEARER + b"Content-Length: 100000\r\n\r\n"
        with server.raw(head + bytes(50_000)):
            pass
    end = time.monotonic() + 10
    while "edgekiln_body_bytes 0" not in client.get("/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert client.post("/predict", content=photo.read_bytes()).status_code == 200


# -- who is let in


@pytest.mark.parametrize("path", ["/", "/info", "/metrics", "/page.js", "/nowhere"])
@pytest.mark.parametrize("token", [None, "wrong", TOKEN[:-1], TOKEN + "x", "\u00e4" * 8])
def test_without_the_token_there_is_nothing(server, path, token):
    headers = {} if token is None else {"Authorization": f"Bearer {token}".encode()}
    with server.client(None) as client:
        response = client.get(path, headers=headers)
        assert (response.status_code, error_of(response)["reason"]) == (401, "token")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert TOKEN not in response.text


def test_the_token_in_the_address_becomes_a_cookie_and_leaves_the_address(server):
    with server.client(None) as client:
        assert client.get("/", params={"token": "wrong"}).status_code == 401
        response = client.get("/", params={"token": TOKEN})
        assert (response.status_code, response.headers["location"]) == (303, "/")
        cookie = response.headers["set-cookie"]
        assert cookie.startswith(f"edgekiln-{server.port}={TOKEN};")
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert client.get("/info").status_code == 200  # by the cookie, which the client kept
        assert client.get("/info", params={"token": "wrong"}).status_code == 200  # counts for the page alone
    with server.client(None) as client:
        assert client.get("/info", params={"token": TOKEN}).status_code == 401
        assert client.get("/info", headers={"Cookie": f"edgekiln={TOKEN}; =; {'x' * 500}"}).status_code == 401


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "", "127.0.0.1:x",
     "[::1", "user@127.0.0.1"],
)  # fmt: skip
def test_a_name_that_was_pointed_here_is_refused_even_with_the_token(server, host):
    with server.raw(f"GET /info HTTP/1.1\r\nHost: {host}\r\n".encode() + BEARER + b"\r\n") as connection:
        assert connection.status() in {400, 421}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:7", "192.168.0.9"])
def test_addresses_and_localhost_are_this_server(server, host):
    with server.raw(f"GET /info HTTP/1.1\r\nHost: {host}\r\n".encode() + BEARER + b"\r\n") as connection:
        assert connection.status() == 200


def test_a_name_may_be_allowed(start, bundle):
    server = start(bundle, "--allowed-host", "Kiln.example")
    with server.client() as client:
        assert client.get("/info", headers={"Host": "kiln.example:8000"}).status_code == 200
        assert client.get("/info", headers={"Host": "other.example"}).status_code == 421


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_a_page_of_another_origin_may_not_ask(client, photo, origin):
    response = client.post("/predict", content=photo.read_bytes(), headers={"Origin": origin})
    assert (response.status_code, error_of(response)["reason"]) == (403, "origin")


def test_every_answer_carries_the_policy(server):
    for token, path in [(TOKEN, "/"), (TOKEN, "/nowhere"), (None, "/info"), (None, "/healthz")]:
        with server.client(token) as client:
            headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_who_asks_too_often_is_told_to_wait(start, bundle):
    server = start(bundle, "--max-rate", "0.1")  # slower than any machine under load
    with server.client("wrong") as client:
        assert client.get("/info").status_code == 401
        response = client.get("/info")
        assert (response.status_code, error_of(response)["reason"]) == (429, "rate")
        assert response.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200  # whoever watches the process is not counted


# -- metrics


def test_metrics_are_prometheus_text_and_count_what_was_done(start, bundle, photo):
    server = start(bundle, "--variant", "fp32")
    with server.client() as client:
        for body in [photo.read_bytes()] * 3 + [b"broken"]:
            client.post("/predict", content=body)
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = read_samples(response.text)
    assert samples['edgekiln_requests_total{path="/predict",method="POST",status="200"}'] == 3
    assert samples['edgekiln_requests_total{path="/predict",method="POST",status="422"}'] == 1
    assert samples['edgekiln_errors_total{code="image"}'] == 1
    assert samples['edgekiln_pictures_total{variant="fp32",end="answered"}'] == 3
    assert samples['edgekiln_pictures_total{variant="fp32",end="failed"}'] == 1
    assert samples["edgekiln_predict_seconds_count"] == 3
    assert samples['edgekiln_predict_seconds_bucket{le="+Inf"}'] == 3
    assert samples['edgekiln_picture_seconds_count{variant="fp32",stage="engine"}'] == 3
    assert 0 < samples["edgekiln_predict_seconds_sum"] < 30
    assert samples['edgekiln_batches_total{variant="fp32",size="1"}'] == 3
    assert samples['edgekiln_queue_pictures{variant="fp32"}'] == 0


def read_samples(text):
    """Strictly as the exposition format says: every sample's family was declared before."""
    samples, kinds = {}, {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = re.fullmatch(r'([a-z_]+)(\{(?:[a-z]+="(?:[^"\\]|\\.)*",?)*\})? (\S+)', line)
            assert match, line
            assert {match[1], re.sub("_(bucket|sum|count)$", "", match[1])} & set(kinds), line
            assert line.rpartition(" ")[0] not in samples
            samples[line.rpartition(" ")[0]] = float(match[3])
    return samples


# -- load


def test_32_connections_for_some_seconds_meet_no_error_and_leave_nothing(start, bundle, photo):
    server = start(bundle, "--max-rate", "0")
    body, seconds, problems, answered = photo.read_bytes(), 3.0, [], [0] * 32

    def ask(number, end):
        with closing(
            HTTPConnection("127.0.0.1", server.port, timeout=30)
        ) as connection:  # lighter than httpx
            while time.monotonic() < end:
                connection.request("POST", "/predict", body, {"Authorization": f"Bearer {TOKEN}"})
                response = connection.getresponse()
                told = response.read()
                if response.status != 200 or b'"label"' not in told:
                    problems.append(told)
                    return
                answered[number] += 1

    def run(seconds):
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=ask, args=(number, end)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    run(1.0)  # threads, buffers and caches are made
    before, descriptors = server.memory_mb(), server.descriptors()
    run(seconds)
    assert not problems, problems[0]
    assert min(answered) > 0  # nobody starves
    # 3 MB: what the allocator's arenas of some threads vary by; a body kept by each request would be over 10 MB.
    assert server.memory_mb() - before < max(3.0, sum(answered) * len(body) / 2**20 / 4)
    end = time.monotonic() + 10
    while server.descriptors() > descriptors:
        assert time.monotonic() < end, "connections stay open"
        time.sleep(0.05)


def test_where_too_much_is_asked_at_once_it_is_said_and_nothing_hangs(start, bundle, photo):
    server = start(bundle, "--max-queue", "1", "--max-batch", "1", "--max-rate", "0")
    statuses = []

    def ask():
        with server.client() as client:
            for _ in range(10):
                response = client.post("/predict", content=photo.read_bytes())
                statuses.append((response.status_code, response.json().get("error", {}).get("code")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {(200, None), (503, "overloaded")}


# -- ending and reloading


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_under_way_and_exits_0(start, bundle, photo, number):
    server, body = start(bundle), photo.read_bytes()
    head = b"POST /predict HTTP/1.1\r\n" + HOST + BEARER + b"Content-Length: %d\r\n\r\n" % len(body)
    with server.raw(head + body[:10]) as connection, server.client() as idle:
        assert idle.get("/healthz").status_code == 200  # kept open, and not waited for
        wait_until_taken(server, connection)
        server.process.send(number)
        assert server.process.wait_for("Stopping")
        while not is_refused(server.port):
            time.sleep(0.01)
        connection.send(body[10:])
        answer = connection.read()
    assert answer.split(b" ", 2)[1] == b"200"
    assert b'"label"' in answer
    assert server.process.wait() == 0


def test_closing_its_terminal_stops_it(bundle):
    """SIGHUP means a reload where it is sent, and the end where it comes from a terminal that went away."""
    terminal, inside = pty.openpty()
    code = "import os; os.open(os.ttyname(0), os.O_RDWR); from edgekiln.pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", bundle, "--port", "0", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), inside)
    process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
    os.close(inside)
    said = b""
    while b"?token=" not in said:
        said += os.read(terminal, 1000)
    port = int(re.search(rb":(\d+)/", said)[1])
    os.close(terminal)
    assert process.wait(60) == 0
    assert is_refused(port)


def test_who_never_ends_is_cut_off_and_told(start, bundle):
    server = start(bundle, grace_seconds=1)
    head = b"POST /predict HTTP/1.1\r\n" + HOST + BEARER + b"Content-Length: 1000\r\n\r\n"
    with server.raw(head) as connection:
        wait_until_taken(server, connection)
        assert server.stop() == 0
        answer = connection.read()
    assert b" 503 " in answer
    assert b'"reason":"stopping"' in answer


def wait_until_taken(server, connection):
    """Until the server has read a request's head: one that was sent later has been answered."""
    with server.client() as client:
        client.get("/healthz")
    time.sleep(0.1)


def is_refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sighup_reloads_and_a_broken_bundle_keeps_the_old_one(start, own_bundle, photo):
    server = start(own_bundle, "--variant", "fp32", "--variant", "int8", look_seconds=0.2)
    with server.client() as client:
        digest = client.get("/info").json()["bundle"]["digest"]
    server.process.send(signal.SIGHUP)
    assert server.process.wait_for(f"Reloaded: tiny ({digest[:12]}) is served.")
    engine = own_bundle / "int8.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")  # noticed by itself, two looks later
    assert server.process.wait_for("was changed: sha256")
    assert f"The bundle was not reloaded, tiny ({digest[:12]}) goes on" in server.log
    with server.client() as client:
        for variant in ("fp32", "int8"):
            assert (
                client.post("/predict", params={"variant": variant}, content=photo.read_bytes()).status_code
                == 200
            )
        samples = read_samples(client.get("/metrics").text)
    assert samples['edgekiln_reloads_total{result="ok"}'] == 1
    assert samples['edgekiln_reloads_total{result="kept"}'] == 1


def test_a_changed_bundle_is_served_without_a_failed_request(start, own_bundle, photo):
    server = start(own_bundle, look_seconds=0.2)
    path = own_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["name"] = "newer"
    with server.client() as client:
        write(own_bundle.parent / "beside.json", json.dumps(manifest)).replace(path)
        while client.get("/info").json()["bundle"]["name"] != "newer":
            assert client.post("/predict", content=photo.read_bytes()).status_code == 200
            time.sleep(0.02)
    assert "Reloaded: newer" in server.log


def write(path, text):
    path.write_text(text)
    return path


# -- the command


def test_a_port_that_is_taken_is_a_typed_error(edgekiln, bundle, server):
    code, _, err = edgekiln("serve", bundle, "--port", server.port)
    assert code == 2
    assert f"Port {server.port} of 127.0.0.1 cannot be listened on: Address already in use." in err
    assert "--port 0" in err


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--host", "no.such.invalid"], {}, "is no address to listen on"),
        (["--variant", "fp32", "--variant", "fp32"], {}, "Up to 2 different variants"),
        (["--variant", "none"], {}, "has no variant 'none'"),
        (["--allow-unverified"], {}, "needs a variant by name"),
        ([], {"EDGEKILN_SERVE_TOKEN": "short"}, "has to be 16 or more"),
    ],
)
def test_what_cannot_be_served_is_told(edgekiln, bundle, monkeypatch, arguments, environment, said):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    code, out, err = edgekiln("serve", bundle, "--port", "0", *arguments)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("module", ["starlette", "uvicorn", "python_multipart"])
def test_without_the_extra_the_command_says_how_to_install_it(edgekiln, bundle, monkeypatch, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    code, _, err = edgekiln("serve", bundle)
    assert code == 5
    assert "Run: pip install 'edgekiln[serve]'" in err


def test_without_a_token_of_ones_own_each_start_has_another(light_launcher, bundle, tmp_path):
    tokens = []
    for name in ("one", "two"):
        process = light_launcher.start("serve", bundle, "--port", "0", "--json", folder=tmp_path, name=name,
                                       environment={"EDGEKILN_SERVE_TOKEN": None})  # fmt: skip
        while not process.out.read_text().endswith("\n"):
            light_launcher.listen(0.02)
        document = json.loads(process.out.read_text())
        tokens.append(document["token"])
        response = httpx.get(
            f"{document['address']}info", headers={"Authorization": f"Bearer {tokens[-1]}"}, trust_env=False
        )
        assert response.status_code == 200
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert len(set(tokens)) == 2
    assert all(len(token) >= 32 for token in tokens)
