"""The chat page in a real browser, against a tiny model. Skipped where Chromium and its driver are not installed.

WHIT_SCREENSHOTS=FOLDER keeps pictures; with WHIT_PAGE_MODEL they are of that model's answers.
"""
import os
import re
import tempfile
import unittest
from pathlib import Path

import webdriver
from cli_support import tiny_model
from serve_support import Server

LAST = "[...document.querySelectorAll('.turn.assistant')].pop()"
IDLE = "document.getElementById('stop').hidden"
FOCUS = "return document.activeElement.id"
# The tiny model is done in a moment: of its answers only the start comes, until they are released or stopped.
HOLD = """window.released = false;
    const send = window.fetch;
    window.fetch = async (url, options) => {
        const response = await send(url, options);
        if (!options?.body) return response;
        let passed = 0;
        const held = new TransformStream({ async transform(chunk, out) {
            for (let i = 0; i < chunk.length; i += 400) {
                while (passed >= 20 && !window.released && !options.signal.aborted)
                    await new Promise(done => setTimeout(done, 5));
                out.enqueue(chunk.slice(i, i + 400));
                ++passed;
            } } });
        return new Response(response.body.pipeThrough(held), response);
    }"""


@unittest.skipIf(webdriver.missing(), webdriver.missing())
class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.server = Server(os.environ.get("WHIT_PAGE_MODEL") or tiny_model(folder.name), "--max-num-seqs", "4")
        cls.addClassCleanup(cls.server.stop)
        cls.browser = webdriver.Browser()
        cls.addClassCleanup(cls.browser.close)

    def setUp(self):
        self.browser.open(f"http://{self.server.host}:{self.server.port}/")
        self.browser.wait("model !== ''")

    def picture(self, name):
        if folder := os.environ.get("WHIT_SCREENSHOTS"):
            self.browser.screenshot(Path(folder) / f"{name}.png")

    def set(self, **values):
        for name, value in values.items():
            self.browser.run("const e = document.getElementById(arguments[0]); e.value = arguments[1];"
                             "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change'))", name, str(value))

    def ask(self, text):
        self.browser.run("document.getElementById('input').focus()")
        self.browser.type(text)
        self.browser.press("enter")

    def test_an_answer_streams_in_and_the_panel_follows(self):
        browser = self.browser
        self.assertEqual(browser.run(FOCUS), "input")
        self.set(max_tokens=300, temperature=1, seed=3)
        before = self.server.metrics()
        browser.run(HOLD)
        self.ask("Count to twenty, please.")
        started = browser.wait(f"{LAST}?.querySelector('.text').textContent.length")
        self.assertFalse(browser.run(f"return {IDLE}"))
        browser.run("window.released = true")
        browser.wait(IDLE)
        self.assertGreater(browser.run(f"return {LAST}.querySelector('.text').textContent.length"), started)
        self.assertRegex(browser.run(f"return {LAST}.querySelector('.note').textContent"), r"^\d+ tokens · [\d.]+ tokens/s · first after \d+ ms")
        self.assertEqual(browser.run(FOCUS), "input")
        self.assertGreater(self.server.metrics()["generation_tokens_total"], before["generation_tokens_total"])
        browser.wait("/ms$/.test(document.getElementById('itl').textContent)", 20)
        self.assertRegex(browser.run("return document.getElementById('kv').textContent"), r"^[\d.]+ %$")
        browser.wait("document.getElementById('running').textContent === '0'", 20)  # it asks once a second
        self.assertEqual(browser.console(), [])
        self.picture("answer")

    def test_stop_and_again_work_with_mouse_and_keys(self):
        browser = self.browser
        self.set(max_tokens=100000, temperature=1)
        browser.run(HOLD)
        self.ask("Tell me everything.")
        browser.wait(f"{LAST}?.textContent.length > 10")
        self.picture("streaming")
        browser.press("escape")
        browser.wait(IDLE, 10)
        self.assertIn("stopped", browser.run(f"return {LAST}.querySelector('.note').textContent"))
        browser.press("alt", "r")
        browser.wait(f"!{IDLE}")
        browser.wait(f"{LAST}.textContent.length > 10")
        browser.click("#stop")
        browser.wait(IDLE, 10)
        self.assertEqual(browser.run("return document.querySelectorAll('.turn').length"), 2)
        browser.click("#again")
        browser.wait(f"!{IDLE}")
        browser.press("alt", "n")
        browser.wait(IDLE, 10)
        self.assertEqual(browser.run("return document.querySelectorAll('.turn').length"), 0)
        browser.wait("document.getElementById('running').textContent === '0'", 10)  # the server was told

    def test_shift_and_enter_break_the_line_and_everything_is_reached_by_tab(self):
        browser = self.browser
        browser.type("a")
        browser.press("shift", "enter")
        browser.type("b")
        self.assertEqual(browser.run("return document.getElementById('input').value"), "a\nb")
        reached = set()
        for _ in range(20):
            browser.press("tab")
            reached.add(browser.run(FOCUS))
        self.assertLessEqual({"send", "temperature", "top_p", "top_k", "max_tokens", "repetition_penalty", "seed", "system", "key", "fresh", "log"},
                             reached)

    def test_markdown_is_shown_and_html_is_text(self):
        browser = self.browser
        source = ("# Title\n\nSome **bold**, *soft* and `code <b>`.\n\n1. one\n2. two\n\n- a\n- b\n\n> quoted\n\n```py\nx = [1]\n```\n\n"
                  "| a | b |\n|---|--:|\n| 1 | <i>2</i> |\n\n<img src=x onerror=alert(1)> [here](https://example.org/x) [bad](javascript:alert(1))")
        browser.run("messages = [{role: 'user', content: 'Show **me**'}, {role: 'assistant', content: arguments[0], note: ''}]; redraw()", source)
        count = browser.run("const of = s => document.querySelectorAll('.assistant ' + s).length; return Object.fromEntries("
                            "['h3', 'strong', 'em', 'code', 'ol li', 'ul li', 'blockquote', 'pre code', 'table td', 'a', 'img', 'i', 'script'].map(s => [s, of(s)]))")
        self.assertEqual(count, {"h3": 1, "strong": 1, "em": 1, "code": 2, "ol li": 2, "ul li": 2, "blockquote": 1, "pre code": 1, "table td": 2,
                                 "a": 1, "img": 0, "i": 0, "script": 0})
        text = browser.run("return document.querySelector('.assistant').textContent")
        self.assertIn("<img src=x onerror=alert(1)>", text)
        self.assertEqual(browser.run("return document.querySelector('.user').textContent"), "Show **me**")
        self.picture("markdown")

    def test_errors_are_shown_in_words(self):
        browser = self.browser
        self.set(system="x" * 300000)
        self.ask("Hello")
        browser.wait(f"{LAST}?.querySelector('.bad') && {IDLE}")
        self.assertRegex(browser.run(f"return {LAST}.querySelector('.note').textContent"), r"token")
        self.assertTrue(re.search("400", " ".join(browser.console())))

    def test_a_phone_shows_all_without_sideways_scrolling(self):
        browser = webdriver.Browser()
        self.addCleanup(browser.close)
        browser.emulate(360, 740)
        browser.open(f"http://{self.server.host}:{self.server.port}/")
        browser.wait("model !== ''")
        wide = "return document.documentElement.scrollWidth - window.innerWidth"
        self.assertLessEqual(browser.run(wide), 0)
        browser.run("messages = [{role: 'user', content: 'x'.repeat(300)}, {role: 'assistant', content: '```\\n' + 'long '.repeat(100) + "
                    "'\\n```\\n\\n| a | b |\\n|---|---|\\n| ' + 'wide '.repeat(40) + ' | 2 |', note: ''}]; redraw()")
        self.assertLessEqual(browser.run(wide), 0)
        for name in ("send", "toggle", "input"):
            box = browser.run("const b = document.getElementById(arguments[0]).getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom, b.height]", name)
            self.assertTrue(box[0] >= 0 and box[1] <= 360 and box[2] >= 0 and box[3] <= 740, (name, box))
            self.assertGreaterEqual(box[4], 40, name)
        if folder := os.environ.get("WHIT_SCREENSHOTS"):
            browser.screenshot(Path(folder) / "phone.png")
        self.assertFalse(browser.run("return document.getElementById('side').checkVisibility()"))
        browser.click("#toggle")
        self.assertTrue(browser.run("return document.getElementById('side').checkVisibility()"))
        self.assertEqual(browser.run("return document.getElementById('toggle').getAttribute('aria-expanded')"), "true")
        if folder:
            browser.screenshot(Path(folder) / "phone_panel.png")
        browser.press("escape")
        self.assertFalse(browser.run("return document.getElementById('side').checkVisibility()"))


if __name__ == "__main__":
    unittest.main()
