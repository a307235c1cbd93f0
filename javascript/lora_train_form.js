// What the page remembers itself: the form over a reload, which run was pressed in the table, which files have cards.
(() => {
    if (window.loraTrainForm) return;
    window.loraTrainForm = true;

    const SOON = 300; // ms after the last key
    const SELDOM = 10; // seconds between two questions while the tab is not in view
    const PATIENCE = 60000; // ms until an answer counts as lost
    const BESIDE = 50; // ms that gradio is given to take over what was typed
    const ADVISED = ["data", "network", "training", "validation", "save"]; // sections of the settings
    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const press = (selector) => {
        const button = root().querySelector(selector);
        if (button) button.click();
    };

    // ---------------------------------------------------------- the form (ui/keep.py)
    let timer = 0;
    const keep = () => press("#lora_train_keep");
    for (const kind of ["input", "change", "click"]) {
        document.addEventListener(
            kind,
            (event) => {
                if (event.target.id === "lora_train_keep" || !event.target.closest) return;
                if (!event.isTrusted || !event.target.closest("#lora_train")) return;
                clearTimeout(timer);
                timer = setTimeout(keep, SOON);
            },
            true,
        );
    }
    window.addEventListener("pagehide", keep);

    // ---------------------------------------------------------- advice, when a field is left (ui/tab.py, _advise)
    const fields = ADVISED.map((section) => `[id^="lora_train_${section}_"]`).join();
    let asked = 0; // when; 0 while no answer is awaited
    let isOld = false; // the form is another one than that which was asked about
    let asking = 0;
    const advise = () => {
        isOld = true;
        if (Date.now() - asked < PATIENCE) return; // gradio would drop it: it is asked once more afterwards
        isOld = false;
        asked = Date.now();
        press("#lora_train_advised");
    };
    window.loraTrainAdvised = () => {
        asked = 0;
        if (isOld) advise();
    };
    for (const [kind, of] of [
        ["focusout", ":is(input, textarea):not([type='checkbox'])"],
        ["change", "input[type='checkbox']"],
    ]) {
        document.addEventListener(kind, ({ target }) => {
            if (!target.matches || !target.matches(`#lora_train ${of}`) || !target.closest(fields)) return;
            clearTimeout(asking);
            asking = setTimeout(advise, BESIDE);
        });
    }

    // ---------------------------------------------------------- the table of runs
    document.addEventListener("click", (event) => {
        const chosen = event.target.closest && event.target.closest(".lt-choose");
        if (!chosen) return;
        event.preventDefault();
        const field = root().querySelector("#lora_train_run_wish :is(textarea, input)");
        field.value = chosen.dataset.run;
        field.dispatchEvent(new Event("input", { bubbles: true }));
        setTimeout(() => press("#lora_train_run_choose"), 40); // gradio takes over the text first
    });

    // ---------------------------------------------------------- the cards in the WebUI's Lora tab (ui/follow.py)
    const has = (name) => root().querySelector(`#txt2img_lora_cards .card[data-name="${CSS.escape(name)}"]`);
    /** Let the WebUI list its cards anew, with the person where they were in the list. */
    const refresh = (page) => {
        const place = root().querySelector(`#${page}_lora_cards_html`);
        const top = place && place.querySelector(`#${page}_lora_cards`)?.scrollTop;
        if (top) {
            new MutationObserver((_, seen) => {
                seen.disconnect();
                place.querySelector(`#${page}_lora_cards`)?.scrollTo(0, top);
            }).observe(place, { childList: true, subtree: true });
        }
        press(`#${page}_lora_extra_refresh_internal`);
    };
    let shown = null; // the files that the cards are of
    let before = "";
    let seconds = 0;
    setInterval(() => {
        const tab = root().querySelector("#lora_train");
        if (!tab || document.hidden) return;
        seconds += 1;
        if (seconds % SELDOM === 0) {
            if (tab.offsetParent === null) press("#lora_train_look");
            else keep(); // what the server has filled in meanwhile
        }
        const { loras, newest } = root().querySelector("#lora_train_loras [data-loras]")?.dataset || {};
        if (!loras || !root().querySelector("#txt2img_lora_cards")) return;
        if (shown === null && (!newest || has(newest))) shown = loras; // the WebUI may have listed them long ago
        if (loras !== shown && loras === before) { // a preview may follow its file at once
            shown = loras;
            ["txt2img", "img2img"].forEach(refresh);
        }
        before = loras;
    }, 1000);
})();
