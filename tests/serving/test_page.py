"""The page in headless Chromium: drop, ask, compare, map, error, keyboard, phone."""

import shutil

import pytest
from PIL import Image

webdriver = pytest.importorskip("selenium.webdriver")
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
Service = pytest.importorskip("selenium.webdriver.chrome.service").Service
Wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

DROP = """
const [name, type, content] = arguments, transfer = new DataTransfer();
const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
transfer.items.add(new File([bytes], name, { type }));
document.dispatchEvent(new DragEvent("dragover", { dataTransfer: transfer, bubbles: true, cancelable: true }));
document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
"""

REDNESS = """
const canvas = document.querySelector("canvas.map");
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
let [least, most] = [255, -255];
for (let i = 0; i < pixels.length; i += 4) {
  least = Math.min(least, pixels[i] - pixels[i + 2]); most = Math.max(most, pixels[i] - pixels[i + 2]);
}
return [least, most];
"""
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1100", "--no-proxy-server")


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in OPTIONS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(driver))
    yield made
    made.quit()


@pytest.fixture
def page(browser, server):
    browser.get(server)
    wait(browser, lambda: len(all_of(browser, "#samples img")) == 8)
    wait(browser, lambda: all_of(browser, "#attributes button"))
    return browser


def wait(browser, condition):
    return Wait(browser, 30, 0.1).until(lambda _: condition())


def all_of(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def error(browser):
    return browser.find_element(By.ID, "error").text


def finished(browser, count):
    return wait(
        browser, lambda: len(all_of(browser, ".answer .row button")) == count and all_of(browser, ".answer .text")
    )


def test_a_sample_two_models_options_and_maps(page):
    page.find_element(By.CSS_SELECTOR, "#samples button:nth-child(2)").click()
    wait(page, lambda: all_of(page, "#samples button[aria-pressed=true]"))
    page.find_element(By.CSS_SELECTOR, "#attributes button").click()
    texts = finished(page, 2)
    assert [heading.text for heading in all_of(page, ".answer h3")] == ["tuned", "adapted"]
    assert all(text.text for text in texts)
    shares = [float(share.text.removesuffix(" %")) for share in all_of(page, ".answer:first-child .share")]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert len(all_of(page, ".answer:first-child .option.right")) == 1
    for button in all_of(page, ".answer .row button"):
        button.click()
    wait(page, lambda: len(all_of(page, "canvas.map")) == 2)
    assert "not an explanation" in page.find_element(By.ID, "caution").text
    colours = page.execute_script(REDNESS)
    assert colours[1] - colours[0] > 60
    assert error(page) == ""
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_an_image_is_dropped_and_asked_freely_by_keyboard(page):
    from pictures import data_url  # noqa: PLC0415

    content = data_url(Image.effect_noise((120, 80), 90).convert("RGB")).partition(",")[2]
    assert not page.find_element(By.ID, "ask").is_enabled()
    page.execute_script(DROP, "cell.png", "image/png", content)
    wait(page, lambda: page.find_element(By.ID, "ask").is_enabled())
    assert page.find_element(By.ID, "shown").is_displayed()
    page.find_element(By.ID, "question").send_keys("What is <b>this</b>?", Keys.CONTROL, Keys.ENTER)
    assert all(text.text for text in finished(page, 2))
    assert all_of(page, ".option") == []


def test_errors_are_told(page):
    page.execute_script(DROP, "notes.txt", "text/plain", "aGVsbG8=")
    wait(page, lambda: "'notes.txt' is not an image" in error(page))
    page.execute_script(DROP, "broken.png", "image/png", "aGVsbG8=")
    wait(page, lambda: page.find_element(By.ID, "ask").is_enabled())
    assert error(page) == ""
    page.find_element(By.ID, "ask").click()
    wait(page, lambda: "Write a question first" in error(page))
    page.find_element(By.ID, "question").send_keys("What?")
    page.find_element(By.ID, "ask").click()
    wait(page, lambda: "image: cannot be decoded" in error(page))
    assert all_of(page, ".busy") == []


def test_nothing_is_wider_than_a_phone(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 400
        page.find_element(By.CSS_SELECTOR, "#samples button").click()
        wait(page, lambda: all_of(page, "#samples button[aria-pressed=true]"))
        page.find_element(By.CSS_SELECTOR, "#attributes button").click()
        finished(page, 2)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 400
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_loads_nothing_from_elsewhere(page, server):
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith((server, "data:", "blob:")) for name in loaded)
