"""Pages for a browser: what is in the file, and what a headless Chromium makes of it."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")
imageio = pytest.importorskip("imageio.v2")

from stable_baselines3 import DQN

from sb3_attn import RecurrentDQN
from sb3_attn.viz import record_episode, write_index, write_page
from tests.helpers.attention import LENGTH, make_env, make_model

HOSTILE = "</script><script>throw 'ran'</script>"


@pytest.fixture(scope="module")
def episode():
    return record_episode(make_model(DQN, make_env("dict")), make_env("dict"))


@pytest.fixture(scope="module")
def page(episode, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page") / "page.html", episode, f"DATA {HOSTILE}", fps=50)


def data_of(path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL).group(1))


def test_the_numbers_are_those_of_the_recording(page, episode):
    data = data_of(page)
    assert data["title"] == f"DATA {HOSTILE}" and data["fps"] == 50
    assert data["actions"] == [str(action) for action in episode.actions]
    assert data["rewards"] == episode.rewards.tolist() and data["returns"] == episode.rewards.cumsum().tolist()
    np.testing.assert_allclose(data["scores"]["values"], episode.action_scores, rtol=1e-5)
    assert [panel["title"] for panel in data["panels"]] == [
        "rendered",
        "observed: image",
        "attention, head 1",
        "attention, head 2",
    ]
    for panel in data["panels"]:
        if "overlays" in panel:
            assert data["panels"][panel["images"]]["title"] == "observed: image" and len(panel["overlays"]) == LENGTH
        else:
            assert len(panel["images"]) == LENGTH
    largest = episode.recorded_weights[0].weights[3, 1].max()
    assert re.search(r" ([\d.]+)(,|$)", data["maps"][1]["captions"][3]).group(1) == f"{largest:.3g}"


def test_invalid_actions_and_actions_without_scores(episode, tmp_path):
    scores = np.where(np.arange(3) == 1, -np.inf, episode.action_scores)
    data = data_of(write_page(tmp_path / "page.html", replace(episode, action_scores=scores), "masks"))
    assert data["scores"]["values"][0][1] is None and data["scores"]["low"] == pytest.approx(scores[:, ::2].min())
    data = data_of(write_page(tmp_path / "page.html", replace(episode, action_scores=scores * np.nan), "diverged"))
    assert data["scores"]["values"][0] == [None] * 3 and (data["scores"]["low"], data["scores"]["high"]) == (0, 1)
    data = data_of(write_page(tmp_path / "page.html", replace(episode, action_scores=None, frames=None), "no scores"))
    assert data["scores"] is None and data["panels"][0]["title"] == "observed: image"


def test_memories_have_heat_maps_and_matrices(tmp_path):
    model = RecurrentDQN(
        "MlpPolicy", make_env("vector"), policy_kwargs=dict(core="dnc"), buffer_size=400, device="cpu", seed=0
    )
    data = data_of(write_page(tmp_path / "page.html", record_episode(model, make_env("vector")), "dnc"))
    assert [panel["title"] for panel in data["panels"]] == ["rendered", "memory link"]
    titles = [heat_map["title"] for heat_map in data["maps"]]
    assert titles[0] == "memory read, head 1, slot by step" and titles[-1] == "memory usage, slot by step"
    assert data["maps"][0]["scale"]["even"] is not None and data["maps"][-1]["scale"]["even"] is None


def test_recurrent_states_have_heat_maps(tmp_path):
    env = make_env("vector")
    model = RecurrentDQN("MlpPolicy", env, policy_kwargs=dict(core_kwargs=dict(hidden_size=8)), buffer_size=400, device="cpu")
    episode = record_episode(model, env)
    data = data_of(write_page(tmp_path / "page.html", episode, "lstm"))
    assert [heat_map["title"] for heat_map in data["maps"]] == ["state: hidden, unit by step", "state: cell, unit by step"]
    size = np.sqrt(np.square(episode.recurrent_states["cell"][3]).mean())
    assert data["maps"][1]["captions"][3] == f"root mean square {size:.3g}"


def test_an_index_lists_pages(tmp_path):
    text = write_index(tmp_path / "index.html", "<b>", [("episode_1.html", "Episode 1 <i>")]).read_text(encoding="utf-8")
    assert '<a href="episode_1.html">Episode 1 &lt;i&gt;</a>' in text and "<b>" not in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for switch in [*switches.split(), "disable-component-update", "disable-sync", "window-size=400,800"]:
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def test_a_browser_steps_through_the_episode(browser, page, episode):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    def text(selector: str) -> list[str]:
        return [element.text for element in browser.find_elements("css selector", selector)]

    browser.get(page.as_uri())
    assert browser.title == f"DATA {HOSTILE}" and text("h1") == [browser.title]
    first = browser.find_element("css selector", ".panel img").get_attribute("src")
    browser.find_element("tag name", "body").send_keys(Keys.ARROW_RIGHT)
    browser.find_element("id", "slider").send_keys(Keys.ARROW_RIGHT)  # one step, though a slider knows the key, too
    assert text("#numbers") == [f"step 2 of 0 to 4 · action {episode.actions[2]} · reward 30 · return 60"]
    assert browser.find_element("css selector", ".panel img").get_attribute("src") != first
    shown = [float(number) for number in text(".score > :last-child")]
    np.testing.assert_allclose(shown, episode.action_scores[2], rtol=1e-5)
    assert text(".score.chosen > :first-child") == [f"▶ action {episode.actions[2]}"]
    browser.find_element("id", "play").click()
    WebDriverWait(browser, 10).until(lambda _: text("#play") == ["Play"])
    assert text("#numbers")[0].startswith("step 4 of")
    loaded = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert browser.execute_script(loaded)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.get_log("browser") == []
