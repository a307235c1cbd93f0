// What the page remembers itself: the form over a reload, which run was pressed in the table, which files are new.
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

    // ---------------------------------------------------------- new files, in the WebUI's Lora tab too
    let known = null;
    let seconds = 0;
    const seldom = (tab, isHidden) => {
        if (!isHidden) return keep(); // what the server has filled in meanwhile
        const status = tab.querySelector("#lora_train_status");
        const isUnknown = status && !status.textContent.trim();
        if (isUnknown || tab.querySelector(".lt-status .lt-running")) press("#lora_train_glance");
    };
    setInterval(() => {
        const tab = root().querySelector("#lora_train");
        if (!tab || document.hidden) return;
        seconds += 1;
        if (seconds % SELDOM === 0) seldom(tab, tab.offsetParent === null);
        const files = [...tab.querySelectorAll("[data-files]")].map((each) => each.dataset.files).join(" ");
        if (known !== null && files !== known) {
            for (const page of ["txt2img", "img2img"]) press(`#${page}_lora_extra_refresh_internal`);
        }
        known = files;
    }, 1000);
})();
