"""Pages by their values, and in a real browser."""

from pathlib import Path

from selenium import webdriver

from vidpipe import page


def test_a_page_loads(browser: webdriver.Chrome, tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text(page.render("base.html.j2"))
    browser.get((tmp_path / "x.html").as_uri())
    assert browser.get_log("browser") == []
    assert [e for e in browser.get_log("performance") if "requestWillBeSent" in e["message"]]
    assert browser.execute_script("return document.body.className") == "playing"
