// Carries a prompt, or all settings of a picture, to txt2img; where there is none, to the clipboard.
loraTrain.define("txt2img", [], ({ BESIDE, find, type }) => {
    /** As the WebUI writes it under a picture; its ↙ button puts each part into its field. */
    const described = ({ prompt, negative, settings }) =>
        [prompt, negative && `Negative prompt: ${negative}`, settings].filter(Boolean).join("\n");

    const carry = (use, field) => {
        const { prompt, negative, settings, replace } = use;
        const paste = find("#txt2img_tools #paste");
        if (settings && paste) {
            type(field, described(use));
            setTimeout(() => paste.click(), BESIDE);
        } else if (replace !== undefined) {
            type(field, prompt);
            type(find("#txt2img_neg_prompt textarea"), negative);
        } else if (!field.value.includes(prompt)) type(field, (field.value ? `${field.value}, ` : "") + prompt);
        if (typeof switch_to_txt2img === "function") switch_to_txt2img();
    };

    document.addEventListener("click", (event) => {
        const button = event.target.closest && event.target.closest(".lt-use");
        if (!button) return;
        event.preventDefault();
        const use = button.dataset;
        const field = find("#txt2img_prompt textarea");
        if (field) carry(use, field);
        else navigator.clipboard?.writeText(use.settings ? described(use) : use.prompt);
    });
});
