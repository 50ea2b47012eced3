"""Uses the page of a decoder-service in headless Chromium, as a reader with a mouse, a keyboard or a phone would.

    python3 check.py --server 'target/release/decoder-service serve --model models/demo' [--shots DIR] [--axe axe.min.js]

Needs chromium and chromedriver (Debian: chromium-driver) and nothing else. Starts the server itself, and again in the
middle. With --axe, the file of the npm package axe-core, its rules are checked as well. Prints what was checked.
"""

import argparse
import base64
import contextlib
import json
import math
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

PATIENCE = 60
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
PROMPT = "The boats in the harbour"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, probe):
    end = time.monotonic() + PATIENCE
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"never: {what}")
        time.sleep(0.02)


def http(url, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {error.read().decode(errors='replace')}") from None


class Server:
    """A decoder-service at a port that stays the same."""

    def __init__(self, command):
        self.port = free_port()
        self.command = shlex.split(command) + ["--listen", "127.0.0.1:0", "--http-listen", f"127.0.0.1:{self.port}"]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        line = self.process.stdout.readline()
        assert line, f"{self.command} ended"

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def url(self, path="/"):
        return f"http://127.0.0.1:{self.port}{path}"


class Browser:
    """Chromium, by the WebDriver protocol."""

    def __init__(self):
        port = free_port()
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        self.base = f"http://127.0.0.1:{port}"
        until("chromedriver", self.ready)
        self.profile = tempfile.TemporaryDirectory()
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--force-device-scale-factor=1", f"--user-data-dir={self.profile.name}"]
        options = {"goog:chromeOptions": {"args": arguments}}
        session = http(self.base + "/session", {"capabilities": {"alwaysMatch": options}})["value"]
        self.version = session["capabilities"]["browserVersion"]
        self.base += f"/session/{session['sessionId']}"

    def ready(self):
        with contextlib.suppress(OSError):
            return http(self.base + "/status")["value"]["ready"]

    def close(self):
        with contextlib.suppress(AssertionError, OSError):
            http(self.base, method="DELETE")
        self.driver.terminate()
        self.driver.wait()
        self.profile.cleanup()

    def post(self, path, **body):
        return http(self.base + path, body)["value"]

    def open(self, url):
        self.post("/url", url=url)

    def run(self, script, *args):
        return self.post("/execute/sync", script=script, args=list(args))

    def run_async(self, script):
        return self.post("/execute/async", script=script, args=[])

    def find(self, selector):
        return self.post("/element", using="css selector", value=selector)[ELEMENT]

    def click(self, selector):
        self.post(f"/element/{self.find(selector)}/click")

    def type(self, selector, text):
        found = self.find(selector)
        self.post(f"/element/{found}/clear")
        self.post(f"/element/{found}/value", text=text)

    def keys(self, *keys):
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.post("/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def hover(self, selector):
        origin = {ELEMENT: self.find(selector)}
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": origin}
        self.run("arguments[0].scrollIntoView({block: 'center'})", origin)
        self.post("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": [move]}])

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def size(self, width, height):
        # Windows have a least width; a page in a phone's viewport has not.
        command = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.post("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=command)

    def shot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(http(self.base + "/screenshot")["value"]))


# What the tests ask of the page, in its own language.

TOKENS = """return [...document.querySelectorAll('#output .token')].map(t => ({
  text: t.textContent, length: Number(t.dataset.length), prompt: t.classList.contains('given'),
  back: getComputedStyle(t).backgroundColor, display: getComputedStyle(t).display}))"""

# The contrast (WCAG 2.2, 1.4.3) of each text with what is behind it, the lowest first.
CONTRAST = """
const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const parse = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const behind = e => { for (; e; e = e.parentElement) {
  const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || e.disabled || e.checkVisibility && !e.checkVisibility()) continue;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
  found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)]);
}
return found.sort((a, b) => a[0] - b[0]);"""

# The two lists of what the model says next: text and probability of each row.
EXPLAINED = """const tables = [...document.querySelectorAll('#explained table')];
return tables.length === 2 && tables.map(t => [...t.tBodies[0].rows].map(r => [r.cells[0].textContent, r.cells[1].textContent]))"""

# Controls that no label names.
NAMELESS = """return [...document.querySelectorAll('input, select, textarea, button')]
  .filter(e => !(e.labels && e.labels.length) && !e.textContent.trim() && !e.getAttribute('aria-label'))
  .map(e => e.outerHTML)"""

# Of a phone's page: how far it is wider than the screen.
OVERHANG = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"

AXE = """const done = arguments[arguments.length - 1];
axe.run().then(r => done(r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html.slice(0, 100)).join(' | '))))"""


class Check:
    def __init__(self, server, browser, shots, axe):
        self.server, self.browser, self.shots = server, browser, shots
        self.axe = axe and open(axe, encoding="utf-8").read()

    def done(self, what):
        print("ok:", what, flush=True)

    def shot(self, name, top=None):
        if self.shots:
            os.makedirs(self.shots, exist_ok=True)
            self.browser.run("window.scrollTo(0, 0)")
            if top:
                self.browser.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", top)
            self.browser.shot(os.path.join(self.shots, f"page-{name}.png"))

    def loaded(self):
        until("the model's name", lambda: "context of" in self.browser.text("#model"))

    def generated(self):
        said = until("the end", lambda: next((t for t in [self.browser.text("#announce")] if t.startswith("Done")), None))
        return int(said.split()[1])

    def fields(self, **values):
        self.browser.run("document.querySelector('details').open = true")
        for name, value in values.items():
            self.browser.type(f"[name={name}]", str(value))

    def generates(self):
        b = self.browser
        b.open(self.server.url())
        self.loaded()
        b.type("#prompt", PROMPT)
        self.fields(max_tokens=60, seed=7, temperature=0.8)
        b.keys()
        b.run("document.querySelector('details').open = false")
        b.click("#go")
        assert self.generated() == 60
        tokens = b.run(TOKENS)
        body = {"prompt": PROMPT, "max_tokens": 60, "seed": 7, "temperature": 0.8, "echo": True,
                "logprobs": 5, "return_match_lengths": True}
        choice = http(self.server.url("/v1/completions"), body)["choices"][0]
        assert "".join(t["text"] for t in tokens) == choice["text"], "the text is not the API's"
        assert [t["length"] for t in tokens] == choice["match_lengths"]
        assert "".join(t["text"] for t in tokens if t["prompt"]) == PROMPT
        assert all(t["display"] == "inline" for t in tokens)
        colours = {t["length"]: t["back"] for t in tokens if t["length"] <= 5}
        shaded = {length: back for length, back in colours.items() if length >= 2}
        assert shaded and len(set(shaded.values())) == len(shaded), colours
        for figure in ("#rate", "#first", "#matched", "#lookup"):
            assert any(c.isdigit() for c in b.text(figure)), figure
        counted = b.run("return [...document.querySelectorAll('#lengths td:nth-child(2)')].map(e => parseInt(e.textContent))")
        assert sum(counted) == 60, counted
        self.done("typed, generated, shaded; text and match lengths are the API's")

    def points_and_arrows(self):
        b = self.browser
        # A wide one: its middle is surely its own.
        wide = ((i, t) for i, t in enumerate(b.run(TOKENS)) if len(t["text"].strip()) >= 2)
        at = next(i for i, t in wide if t["length"] >= 2 and not t["prompt"])
        b.hover(f"[data-index='{at}']")
        said = until("the f-gram", lambda: next((t for t in [b.text("#token")] if "row of the f-gram" in t), None))
        tokens = b.run(TOKENS)
        length = tokens[at]["length"]
        ids = b.run("return tokens.slice(arguments[0], arguments[1]).map(t => t.id)", at - length, at)
        fgram = http(self.server.url("/v1/fgrams/describe"), {"token_ids": ids})
        gram = fgram["text"].replace(" ", "␣").replace("\n", "⏎")
        assert gram in said and f"{length} tokens" in said, (gram, said)
        assert fgram["count"] > 0
        ranked = f"Rank {fgram['rank'] + 1:,} of {fgram['set_size']:,} f-grams: {fgram['count']:,} times"
        assert ranked in said, (ranked, said)
        assert b.run("return document.querySelectorAll('#token tbody tr').length") == 5
        # A click keeps it, wherever the pointer goes on its way to the button.
        b.click(f"[data-index='{at}']")
        b.hover("[data-index='0']")
        b.click("#explain")
        self.explained(at)
        b.run("document.querySelector('#output [tabindex=\"0\"]').focus()")
        b.keys("\ue010", "\ue012")  # End, then the left arrow.
        focused = b.run("return Number(document.activeElement.dataset.index)")
        assert focused == len(tokens) - 2, focused
        assert b.run("return document.querySelectorAll('#output [tabindex=\"0\"]').length") == 1
        until("its token", lambda: f"token {b.run('return tokens[arguments[0]].id', focused)}" in b.text("#token"))
        self.done("a pointer and the arrow keys choose tokens; an f-gram has its rank and count")
        while b.run("return tokens[arguments[0]].length", focused) < 2:
            b.keys("\ue012")
            focused -= 1
        b.keys("\ue007")  # Enter.
        self.explained(focused)
        assert b.run("return Number(document.activeElement.dataset.index)") == focused
        self.readable("explained")
        self.shot("explained", "#token-title")
        self.done("a click and Enter show what the token embedding would have said, as the API has it")

    def explained(self, at):
        b = self.browser
        rows = until("both predictions", lambda: b.run(EXPLAINED))
        ids = b.run("return tokens.slice(0, arguments[0]).map(t => t.id)", at)
        said = http(self.server.url("/v1/fgrams/explain"), {"prompt": ids})
        lists = [said["with_row"], said["with_token_embedding"]]
        assert len(rows) == 2 and lists[0] != lists[1], said
        for shown, list in zip(rows, lists):
            expected = [f"{100 * math.exp(one['logprob']):.1f} %" for one in list]
            assert [row[1] for row in shown] == expected, (shown, list)
            texts = [one["token"].replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") for one in list]
            assert [row[0].removesuffix(" (said)") for row in shown] == texts, (shown, texts)

    def compares(self):
        b = self.browser
        ids = [model["id"] for model in http(self.server.url("/v1/models"))["data"]]
        assert b.run("return [...document.getElementById('table').options].map(o => o.value)") == ids
        choose = "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        self.fields(max_tokens=20)
        for other in ids[1:]:
            b.run(choose, "beside", other)
            b.click("#go")
            assert self.generated() == 20
            for model, output in ((ids[0], "#output"), (other, "#other-output")):
                body = {"model": model, "prompt": PROMPT, "max_tokens": 20, "seed": 7, "temperature": 0.8, "echo": True,
                        "logprobs": 5, "return_match_lengths": True}
                choice = http(self.server.url("/v1/completions"), body)["choices"][0]
                assert b.text(output) == choice["text"], (model, b.text(output), choice["text"])
                lengths = b.run("return [...document.querySelectorAll(arguments[0] + ' .token')]"
                                ".map(t => Number(t.dataset.length))", output)
                assert lengths == choice["match_lengths"], model
        assert max(lengths) < 2, "the last is no table"
        assert b.text("#other-name") == ids[-1] and "20 tokens, 0.0 %" in b.text("#other-figures")
        # With a table, with another one and without.
        b.run(choose, "beside", ids[1])
        b.run(choose, "third", ids[-1])
        b.click("#go")
        assert self.generated() == 20
        texts = [b.text(output) for output in ("#output", "#other-output", "#third-output")]
        assert [b.text(name) for name in ("#name", "#other-name", "#third-name")] == [ids[0], ids[1], ids[-1]]
        for model, text in zip((ids[0], ids[1], ids[-1]), texts):
            body = {"model": model, "prompt": PROMPT, "max_tokens": 20, "seed": 7, "temperature": 0.8, "echo": True}
            assert text == http(self.server.url("/v1/completions"), body)["choices"][0]["text"], model
        self.readable("side by side")
        self.shot("side-by-side")
        b.run(choose, "beside", "")
        b.run(choose, "third", "")
        b.click("#go")
        assert self.generated() == 20
        assert b.run("return document.getElementById('other').hidden && document.getElementById('third-column').hidden")
        self.done(f"{len(ids)} tables side by side, three at a time too, each text as the API's")

    def chats(self):
        b = self.browser
        b.click("#chat-kind")
        self.fields(max_tokens=20)
        b.click("#go")
        assert self.generated() == 20
        tokens = b.run(TOKENS)
        body = {"messages": [{"role": "user", "content": b.run("return document.getElementById('prompt').value")}],
                "max_tokens": 20, "return_match_lengths": True}
        for name in ("seed", "temperature"):
            if value := b.run("return document.querySelector(`[name=${arguments[0]}]`).value", name):
                body[name] = float(value) if name == "temperature" else int(value)
        if "seed" in body:
            choice = http(self.server.url("/v1/chat/completions"), body)["choices"][0]
            assert "".join(t["text"] for t in tokens) == choice["message"]["content"]
            assert [t["length"] for t in tokens] == choice["match_lengths"]
        # The f-gram before the first token lies in the prompt, which is not shown.
        b.run("document.querySelector('#output .token').focus()")
        if tokens[0]["length"] >= 2:
            until("the f-gram", lambda: "row of the f-gram" in b.text("#token"))
        b.click("[value=completion]")
        self.done("a message is answered, by the model's template")

    def refusals(self):
        b = self.browser
        self.fields(top_p=0)
        b.click("#go")
        until("a refusal", lambda: "top_p" in b.text("#error"))
        b.type("[name=top_p]", "0.9")
        b.type("[name=max_tokens]", "5")
        b.run("document.getElementById('prompt').focus()")
        b.post("/actions", actions=[{"type": "key", "id": "keys", "actions": [
            {"type": "keyDown", "value": "\ue009"}, {"type": "keyDown", "value": "\ue007"},
            {"type": "keyUp", "value": "\ue007"}, {"type": "keyUp", "value": "\ue009"}]}])
        assert self.generated() == 5
        assert b.run("return document.getElementById('error').hidden")
        b.type("[name=top_p]", "")
        # What is said in lists is sent as they are read.
        said = b.run("return tokens.filter(t => !t.prompt).map(t => t.id)")
        self.fields(logit_bias=f"{said[0]}:-100, 1:0", stop_token_ids=f"{said[1]}")
        b.click("#go")
        self.generated()
        assert said[0] not in b.run("return tokens.filter(t => !t.prompt).map(t => t.id)")
        b.type("[name=logit_bias]", "x:1")
        b.click("#go")
        until("a refusal", lambda: "logit_bias" in b.text("#error"))
        b.type("[name=logit_bias]", "")
        b.type("[name=stop_token_ids]", "")
        self.done("a refusal names its field; Ctrl+Enter generates")

    def stop_strings(self):
        b = self.browser
        said = "return tokens.filter(t => !t.prompt && !t.span.matches('.cut')).map(t => t.text).join('')"
        self.fields(temperature=0, max_tokens=20, stop="")
        b.click("#go")
        self.generated()
        whole = b.run(said)
        end = whole[len(whole) // 2 :].replace("\n", " ").split(" ")[1]
        self.fields(stop=f"never said\n{end}")
        b.click("#go")
        self.generated()
        text = b.run(said)
        assert text.rstrip() == whole[: whole.index(end)].rstrip(), (text, whole, end)
        b.type("[name=stop]", "")
        self.done("any of several stop strings ends a text")

    def readable(self, name):
        lowest = self.browser.run(CONTRAST)[0]
        assert lowest[0] >= 4.5, f"{name}: contrast {lowest}"
        nameless = self.browser.run(NAMELESS)
        assert not nameless, nameless
        if self.axe:
            self.browser.run(self.axe)
            violations = self.browser.run_async(AXE)
            assert not violations, violations
        axe = ", no violation of axe-core's rules" if self.axe else ""
        self.done(f"{name}: contrast at least {lowest[0]:.1f}, every control has a name{axe}")

    def themes(self):
        b = self.browser
        backs = []
        for theme in ("light", "dark"):
            b.run("const t = document.getElementById('theme'); t.value = arguments[0];"
                  "t.dispatchEvent(new Event('change'))", theme)
            time.sleep(0.3)  # Shades fade over.
            backs.append(b.run("return getComputedStyle(document.body).backgroundColor"))
            self.readable(theme)
            self.shot(theme)
        assert backs[0] != backs[1]
        b.open(self.server.url())
        assert b.run("return getComputedStyle(document.body).backgroundColor") == backs[1], "the choice is kept"
        self.loaded()

    def phone(self):
        b = self.browser
        b.size(360, 740)
        assert b.run(OVERHANG) <= 0
        b.run("document.querySelector('details').open = true")
        assert b.run(OVERHANG) <= 0
        b.run("document.querySelector('details').open = false")
        b.type("#prompt", PROMPT)
        b.click("#go")
        self.generated()
        assert b.run(OVERHANG) <= 0
        self.readable("phone")
        self.shot("phone")
        b.size(1100, 1250)
        self.done("360 pixels are wide enough")

    def restart(self):
        b = self.browser
        self.fields(max_tokens=200)
        b.run("document.querySelector('[name=ignore_eos]').checked = true")
        self.server.stop()
        b.click("#go")
        until("an error", lambda: "connection" in b.text("#error"))
        until("the page's tries", lambda: "cannot be reached" in b.text("#model"))
        self.server.start()
        self.loaded()
        b.click("#go")
        assert self.generated() == 200
        assert b.run("return document.getElementById('error').hidden")
        self.done("the page outlives a restart of its server")

    def stopping(self):
        b = self.browser
        self.fields(max_tokens=2000)
        b.run("""const run = take; window.seen = 0;
                 take = (e, f) => { if (++window.seen === 3) running.abort(); run(e, f); }""")
        b.click("#go")
        until("an end", lambda: b.text("#announce") in ("Stopped.",) or b.text("#announce").startswith("Done"))
        assert b.text("#announce") == "Stopped.", b.text("#announce")
        self.done("a generation can be stopped")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="a decoder-service serve, without its addresses")
    parser.add_argument("--shots", help="where to leave screenshots")
    parser.add_argument("--axe", help="axe.min.js of the npm package axe-core")
    args = parser.parse_args()
    server = Server(args.server)
    try:
        browser = Browser()
        try:
            print("Chromium", browser.version, flush=True)
            browser.size(1100, 1250)
            check = Check(server, browser, args.shots, args.axe)
            check.generates()
            check.points_and_arrows()
            check.compares()
            if browser.run("return !document.getElementById('chat-kind').disabled"):
                check.chats()
            check.themes()
            check.refusals()
            check.stop_strings()
            check.phone()
            check.restart()
            check.stopping()
        finally:
            browser.close()
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
