// Shows what is wrong with a field at the field itself: the sentences of an error notice name their widget
// (ui/html/common.py, error_notice). A press on such a sentence goes to the field.
loraTrain.define("fields", [], ({ find, findAll, make, whenChanged }) => {
    const sentences = () => findAll("#lora_train .lt-error [data-field]:not([data-field=''])");
    const widgetOf = (sentence) => find(`#${CSS.escape(sentence.dataset.field)}`);
    const saidAt = (widget) => widget.querySelector(":scope > .lt-wrong-text");

    /** Open the folds that a widget lies in. */
    const reveal = (widget) => {
        for (let each = widget.parentElement; each && each.id !== "lora_train"; each = each.parentElement) {
            each.querySelector(":scope > .label-wrap:not(.open)")?.click();
        }
    };

    /** The wrong widgets with their sentences; a sentence that is new opens what its widget lies in. */
    const shown = new WeakSet();
    const wrong = () => {
        const found = new Map();
        for (const sentence of sentences()) {
            const widget = widgetOf(sentence);
            if (!widget) continue;
            found.set(widget, sentence.textContent);
            if (!shown.has(sentence)) reveal(widget); // the fold may have been closed since the last one
            shown.add(sentence);
        }
        return found;
    };

    const say = (widget, text) => {
        let said = saidAt(widget);
        if (!said) widget.append((said = make("div", { className: "lt-wrong-text" })));
        if (said.textContent !== text) said.textContent = text;
        widget.classList.add("lt-wrong");
    };

    const mark = () => {
        const found = wrong();
        for (const widget of findAll("#lora_train .lt-wrong")) {
            if (found.has(widget)) continue;
            widget.classList.remove("lt-wrong");
            saidAt(widget)?.remove();
        }
        for (const [widget, text] of found) say(widget, text);
    };
    whenChanged(mark);

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
        widget.querySelector("input, textarea")?.focus({ preventScroll: true });
    });
});
