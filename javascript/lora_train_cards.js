// The cards in the WebUI's Lora tab are listed anew when there are other files (ui/panels/follow.py).
loraTrain.define("cards", [], ({ every, find, isInView, press }) => {
    const SELDOM = 10; // seconds between two questions while the tab is not in view

    const has = (name) => find(`#txt2img_lora_cards .card[data-name="${CSS.escape(name)}"]`);

    /** Let the WebUI list its cards anew, with the person where they were in the list. */
    const refresh = (page) => {
        const place = find(`#${page}_lora_cards_html`);
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
    const follow = () => {
        const { loras, newest } = find("#lora_train_loras [data-loras]")?.dataset || {};
        if (!loras || !find("#txt2img_lora_cards")) return;
        if (shown === null && (!newest || has(newest))) shown = loras; // the WebUI may have listed them long ago
        if (loras !== shown && loras === before) { // a preview may follow its file at once
            shown = loras;
            ["txt2img", "img2img"].forEach(refresh);
        }
        before = loras;
    };

    every(1, follow);
    every(SELDOM, () => {
        if (!isInView(find("#lora_train"))) press("#lora_train_look");
    });
});
