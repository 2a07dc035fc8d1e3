"""A real browser without a window: pages from disk, what they ask for and what they complain of."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCREENSHOTS = "ACTCACHE_SCREENSHOTS"
"""Environment variable: the folder that keeps screenshots; by default the test's own."""

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # of a container's root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--disable-background-networking",
    "--no-first-run",
)


def require_chromium() -> tuple[str, str]:
    """Chromium and its driver; the test is skipped where one is missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip(
            "no chromium and chromedriver on this machine (apt-get install chromium-driver)"
        )
    return browser, driver


class Page:
    """One page, opened from its file."""

    def __init__(self, driver, path: Path, folder: Path):
        self.driver, self.path, self.folder = driver, path, folder
        self.open()

    def open(self):
        """Load the page, as nobody has clicked it."""
        self.driver.get(self.path.absolute().as_uri())
        self.wait("return document.documentElement.dataset.drawn === 'true'")

    def run(self, script, *args):
        """The value of a script's `return`."""
        return self.driver.execute_script(script, *args)

    def wait(self, script, *args, seconds=60):
        """Wait until a script returns something true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, 0.1).until(
            lambda _driver: self.run(script, *args)
        )

    def find(self, selector):
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        from selenium.webdriver.common.by import By

        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector):
        target = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", target)
        target.click()

    def hover(self, target):
        from selenium.webdriver.common.action_chains import ActionChains

        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", target)
        ActionChains(self.driver).move_to_element(target).perform()

    def requests(self) -> list[str]:
        """Addresses of everything that was asked for but the page itself and what is inside it."""
        sent = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        urls = [
            message["params"]["request"]["url"]
            for message in sent
            if message["method"] == "Network.requestWillBeSent"
        ]
        page_url = self.path.absolute().as_uri()
        return [
            u
            for u in urls
            if u.partition("#")[0] != page_url and not u.startswith(("data:", "blob:"))
        ]

    def complaints(self) -> list[str]:
        """What the console says: errors and warnings."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def screenshot(self, name, *, whole=True):
        """Keep a picture of the whole page, or of what is in view."""
        import base64

        folder = Path(os.environ.get(SCREENSHOTS) or self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.run("scrollTo({top: 0, behavior: 'instant'})")
        taken = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": whole, "format": "png"}
        )
        (folder / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))
        return folder / f"{name}.png"


@contextmanager
def opened(path: Path, folder: Path, *, width=1280, height=900, dark=False) -> Iterator[Page]:
    """Open a page from disk in a browser of that size, without a network."""
    browser, driver_path = require_chromium()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in _FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        # A window is at least 500 pixels wide; a phone is narrower.
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield Page(driver, path, folder)
    finally:
        driver.quit()
