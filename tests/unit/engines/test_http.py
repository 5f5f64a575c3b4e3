"""The client towards engines, against servers that do exactly what a test says."""

import asyncio
import contextlib

import pytest
import uvloop

from llama_orch.plugins.engines._http import HttpClient, HttpError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Server:
    """Answers each request with what the script says next; ``None`` closes the connection."""

    def __init__(self, *script):
        self.script = list(script)
        self.requests = []
        self.connections = 0
        self.gone = asyncio.Event()

    @contextlib.asynccontextmanager
    async def client(self, path="", **options):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}", **options)
        try:
            yield client
        finally:
            await client.close()
            server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.script.pop(0)
                if answer is None:
                    break
                for piece in answer if isinstance(answer, tuple) else (answer,):
                    if isinstance(piece, asyncio.Event):
                        await piece.wait()
                    else:
                        writer.write(piece)
                        await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.gone.set()
            writer.close()


class Handler:
    """Keeps what a stream says."""

    def __init__(self):
        self.status = 0
        self.data = b""
        self.pieces = 0
        self.outcome = None
        self.changed = asyncio.Event()

    def on_head(self, status):
        self.status = status
        self.changed.set()

    def on_data(self, data):
        self.data += data
        self.pieces += 1
        self.changed.set()

    def on_done(self):
        assert self.outcome is None
        self.outcome = "done"
        self.changed.set()

    def on_lost(self, error):
        assert self.outcome is None
        self.outcome = error.kind
        self.changed.set()

    async def until(self, condition):
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def over(self):
        await self.until(lambda: self.outcome is not None)
        return self.outcome


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    def run(test):
        async def bounded():
            async with asyncio.timeout(30):
                await test()

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded())

    return run


def test_an_answer_comes_whole_and_its_connection_is_used_again(run):
    async def test():
        server = Server(OK, b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", OK)
        async with server.client() as client:
            answers = [await client.request("GET", "/x", timeout_s=20) for _ in range(3)]
        assert [(a.status, a.body) for a in answers] == [(200, b"ok"), (503, b""), (200, b"ok")]
        assert server.connections == 1

    run(test)


def test_a_request_has_what_http_asks_for(run):
    async def test():
        server = Server(OK)
        async with server.client("/prefix/", headers={"Authorization": "Bearer x"}) as client:
            await client.request("POST", "/x", b"{}", timeout_s=20)
            head = server.requests[0].decode()
            assert head.startswith("POST /prefix/x HTTP/1.1\r\n")
            assert f"Host: 127.0.0.1:{client.port}\r\n" in head
            assert "Authorization: Bearer x\r\n" in head
            assert "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}" in head

    run(test)


def test_a_connection_that_the_server_wants_closed_is_not_used_again(run):
    async def test():
        server = Server(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), OK)
        async with server.client() as client:
            for _ in range(2):
                await client.request("GET", "/x", timeout_s=20)
        assert server.connections == 2

    run(test)


def test_a_kept_connection_that_died_meanwhile_costs_nothing_but_a_new_one(run):
    async def test():
        server = Server(OK, None, OK)
        async with server.client() as client:
            await client.request("GET", "/x", timeout_s=20)
            assert (await client.request("GET", "/y", timeout_s=20)).body == b"ok"
        assert server.connections == 2
        assert [request.split()[1] for request in server.requests] == [b"/x", b"/y", b"/y"]

    run(test)


def test_a_new_connection_that_dies_is_cut_and_not_tried_for_ever(run):
    async def test():
        server = Server(None)
        async with server.client() as client:
            with pytest.raises(HttpError) as caught:
                await client.request("GET", "/x", timeout_s=20)
        assert caught.value.kind == "cut"
        assert len(server.requests) == 1

    run(test)


@pytest.mark.parametrize(
    "answer, kind",
    [
        ((b"nonsense\r\n\r\n", None), "garbage"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", None), "garbage"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nok", None), "cut"),
        ((CHUNKED + b"zz\r\n", None), "garbage"),
        ((CHUNKED + b"5\r\nhel", None), "cut"),
    ],
)
def test_an_answer_that_is_none_is_told_as_what_it_is(run, answer, kind):
    async def test():
        server = Server(answer[0], None)
        async with server.client() as client:
            handler = Handler()
            client.stream("GET", "/x", b"", handler)
            await handler.until(lambda: handler.status or handler.outcome)
            if handler.outcome is None:
                # The server closes when it is asked once more, on the same connection.
                transport = next(iter(client._open))._transport
                assert transport is not None
                transport.write(b"GET / HTTP/1.1\r\n\r\n")
            assert await handler.over() == kind

    run(test)


def test_an_answer_that_never_comes_ends_with_the_timeout_and_frees_the_connection(run):
    async def test():
        server = Server((asyncio.Event(),))
        async with server.client() as client:
            with pytest.raises(HttpError) as caught:
                await client.request("GET", "/x", timeout_s=0.05)
            assert caught.value.kind == "timeout"

    run(test)


def test_an_answer_that_is_too_long_is_refused(run):
    async def test():
        server = Server(OK)
        async with server.client() as client:
            with pytest.raises(HttpError) as caught:
                await client.request("GET", "/x", timeout_s=20, max_bytes=1)
            assert caught.value.kind == "garbage"

    run(test)


def test_nobody_at_the_address_is_unreachable(run):
    async def test():
        async with Server().client() as client:
            port = client.port
        absent = HttpClient(f"http://127.0.0.1:{port}")
        with pytest.raises(HttpError) as caught:
            await absent.request("GET", "/x", timeout_s=20)
        assert caught.value.kind == "unreachable"
        await absent.close()

    run(test)


def test_what_one_read_brings_is_one_call(run):
    async def test():
        chunks = b"".join(b"4\r\nabc\n\r\n" for _ in range(50))
        server = Server(CHUNKED + chunks + b"0\r\n\r\n")
        async with server.client() as client:
            handler = Handler()
            client.stream("POST", "/x", b"{}", handler)
            assert await handler.over() == "done"
            assert handler.data == b"abc\n" * 50
            assert handler.pieces <= 2

    run(test)


def test_a_cancelled_stream_is_silent_and_the_server_sees_it_go(run):
    async def test():
        server = Server((CHUNKED + b"1\r\na\r\n", asyncio.Event()))
        async with server.client() as client:
            handler = Handler()
            request = client.stream("POST", "/x", b"{}", handler)
            await handler.until(lambda: handler.data)
            request.cancel()
            request.cancel()
            assert not client._idle, "what is left of that answer must not meet another request"
            assert handler.outcome is None

    run(test)


def test_a_stream_that_is_cancelled_before_it_was_sent_is_not_sent(run):
    async def test():
        server = Server(OK)
        async with server.client() as client:
            handler = Handler()
            client.stream("POST", "/never", b"{}", handler).cancel()
            await client.request("GET", "/x", timeout_s=20)
            assert [request.split()[1] for request in server.requests] == [b"/x"]
            assert handler.outcome is None

    run(test)


def test_a_paused_stream_reads_on_after_resume(run):
    async def test():
        more = asyncio.Event()
        server = Server((CHUNKED + b"1\r\na\r\n", more, b"1\r\nb\r\n0\r\n\r\n"), OK)
        async with server.client() as client:
            handler = Handler()
            request = client.stream("POST", "/x", b"{}", handler)
            await handler.until(lambda: handler.data)
            request.pause()
            more.set()
            # Another exchange gives the loop every chance to read what it must not read.
            await client.request("GET", "/y", timeout_s=20)
            assert handler.data == b"a"
            request.resume()
            assert await handler.over() == "done"
            assert handler.data == b"ab"

    run(test)


def test_a_stream_that_is_paused_with_its_last_bytes_does_not_pause_the_next_one(run):
    async def test():
        server = Server(OK, OK)
        async with server.client() as client:
            handler = Handler()
            handler.on_data = lambda data: request.pause()
            request = client.stream("POST", "/x", b"{}", handler)
            assert await handler.over() == "done"
            assert (await client.request("GET", "/y", timeout_s=20)).body == b"ok"
        assert server.connections == 1

    run(test)


def test_closing_tells_every_stream(run):
    async def test():
        server = Server((CHUNKED, asyncio.Event()))
        async with server.client() as client:
            running, late = Handler(), Handler()
            client.stream("POST", "/x", b"{}", running)
            await running.until(lambda: running.status)
            await client.close()
            assert await running.over() == "cut"
            client.stream("POST", "/x", b"{}", late)
            assert late.outcome is None, "never from within stream()"
            assert await late.over() == "unreachable"

    run(test)


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "127.0.0.1:80", "http:///x"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="no http:// or https:// address"):
        HttpClient(url)


@pytest.mark.parametrize("headers", [{"A\r\nB": "x"}, {"A": "x\r\nEvil: 1"}])
def test_a_header_cannot_smuggle_another(headers):
    with pytest.raises(ValueError, match="line ends"):
        HttpClient("http://127.0.0.1", headers=headers)


@pytest.mark.parametrize("status, told", [(401, b"no such key: ***"), (200, b"no such key: s3cret")])
def test_a_key_that_a_refusal_repeats_is_not_told_on(run, status, told):
    async def test():
        body = b"no such key: s3cret"
        server = Server(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        async with server.client(headers={"Authorization": "Bearer s3cret"}) as client:
            assert (await client.request("GET", "/x", timeout_s=20)).body == told

    run(test)


def test_a_name_that_is_none_is_unreachable(run):
    async def test():
        client = HttpClient(f"http://{'a' * 64}.example")
        with pytest.raises(HttpError) as caught:
            await client.request("GET", "/", timeout_s=20)
        assert caught.value.kind == "unreachable"
        await client.close()

    run(test)
