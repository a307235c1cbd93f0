// The page asks the server once a second what has changed, while the tab is in view; and carries a prompt to txt2img.
(() => {
    if (window.loraTrain) return;
    window.loraTrain = true;

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);

    /** Do something when an element comes into view for the first time; gradio may not have made it yet. */
    const whenSeen = (selector, act) => {
        const element = root().querySelector(selector);
        if (!element) return setTimeout(() => whenSeen(selector, act), 300);
        new IntersectionObserver((entries, observer) => {
            if (!entries.some((entry) => entry.isIntersecting)) return;
            observer.disconnect();
            act();
        }).observe(element);
    };
    const press = (selector) => {
        const button = root().querySelector(selector);
        if (button) button.click();
    };

    // What is in them is asked for when they are seen: a page that loads pays for each answer (ui/refresh.py).
    whenSeen("#lora_train", () => {
        press("#lora_train_opened");
        press("#lora_train_poll");
    });
    whenSeen("#lora_train_script_run", () => press("#lora_train_script_newest"));

    setInterval(() => {
        const tab = root().querySelector("#lora_train");
        const button = root().querySelector("#lora_train_poll");
        if (button && tab && tab.offsetParent !== null && !document.hidden) button.click();
        const working = [...root().querySelectorAll(".lt-working")].filter((each) => each.offsetParent !== null);
        for (const poll of document.hidden ? [] : new Set(working.map((each) => each.dataset.poll))) {
            root().querySelector(poll).click();
        }
    }, 1000);

    document.addEventListener("click", (event) => {
        const use = event.target.closest && event.target.closest(".lt-use");
        if (!use) return;
        event.preventDefault();
        const prompt = root().querySelector("#txt2img_prompt textarea");
        const paste = root().querySelector("#txt2img_tools #paste");
        const { negative, settings } = use.dataset;
        // as the WebUI writes it under a picture; its ↙ button puts each part into its field
        const described = [use.dataset.prompt, negative && `Negative prompt: ${negative}`, settings];
        const all = settings ? described.filter(Boolean).join("\n") : use.dataset.prompt;
        if (!prompt) {
            navigator.clipboard && navigator.clipboard.writeText(all);
            return;
        }
        const put = (field, text) => {
            field.value = text;
            field.dispatchEvent(new Event("input", { bubbles: true }));
        };
        const tag = use.dataset.prompt;
        if (settings && paste) {
            put(prompt, all);
            setTimeout(() => paste.click(), 40); // gradio takes over the text first
        } else if (use.dataset.replace !== undefined) {
            put(prompt, tag);
            put(root().querySelector("#txt2img_neg_prompt textarea"), use.dataset.negative);
        } else if (!prompt.value.includes(tag)) put(prompt, (prompt.value ? prompt.value + ", " : "") + tag);
        if (typeof switch_to_txt2img === "function") switch_to_txt2img();
    });
})();
