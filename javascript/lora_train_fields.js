// Shows what is wrong with a field at the field itself: the sentences of an error notice name their widget
// (ui/views.py, error_notice). A press on such a sentence goes to the field.
(() => {
    if (window.loraTrainFields) return;
    window.loraTrainFields = true;

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const sentences = () => [...root().querySelectorAll("#lora_train .lt-error [data-field]:not([data-field=''])")];
    const widgetOf = (sentence) => root().querySelector(`#${CSS.escape(sentence.dataset.field)}`);

    /** Open the folds and tabs that a widget lies in. */
    const reveal = (widget) => {
        for (let each = widget.parentElement; each && each.id !== "lora_train"; each = each.parentElement) {
            const fold = each.querySelector(":scope > .label-wrap:not(.open)");
            if (fold) fold.click();
        }
    };

    const shown = new WeakSet();
    const mark = () => {
        const found = new Map();
        for (const sentence of sentences()) {
            const widget = widgetOf(sentence);
            if (!widget) continue;
            found.set(widget, sentence.textContent);
            if (!shown.has(sentence)) reveal(widget); // the fold may have been closed since the last one
            shown.add(sentence);
        }
        for (const widget of root().querySelectorAll("#lora_train .lt-wrong")) {
            if (!found.has(widget)) {
                widget.classList.remove("lt-wrong");
                widget.querySelectorAll(":scope > .lt-wrong-text").forEach((text) => text.remove());
            }
        }
        for (const [widget, text] of found) {
            let said = widget.querySelector(":scope > .lt-wrong-text");
            if (!said) {
                said = document.createElement("div");
                said.className = "lt-wrong-text";
                widget.append(said);
            }
            if (said.textContent !== text) said.textContent = text;
            widget.classList.add("lt-wrong");
        }
    };

    let due = 0;
    const watch = () => {
        const page = root().querySelector("#lora_train");
        if (!page) return setTimeout(watch, 200);
        new MutationObserver(() => {
            clearTimeout(due);
            due = setTimeout(mark, 50);
        }).observe(page, { childList: true, subtree: true });
    };
    watch();

    // what is typed now is something else: the sentence about what stood there before goes
    document.addEventListener("input", (event) => {
        const widget = event.target.closest && event.target.closest("#lora_train .lt-wrong");
        if (!widget) return;
        for (const sentence of sentences().filter((each) => widgetOf(each) === widget)) {
            const notice = sentence.closest(".lt-notice");
            sentence.remove();
            if (!notice.querySelector("[data-field]")) notice.remove();
        }
    });

    document.addEventListener("click", (event) => {
        const sentence = event.target.closest && event.target.closest("#lora_train .lt-error [data-field]");
        const widget = sentence && sentence.dataset.field && widgetOf(sentence);
        if (!widget) return;
        reveal(widget);
        widget.scrollIntoView({ block: "center" });
        const input = widget.querySelector("input, textarea");
        if (input) input.focus({ preventScroll: true });
    });
})();
