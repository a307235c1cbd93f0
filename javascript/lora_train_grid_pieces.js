// Small pieces that several parts of the grid's viewer show.
loraTrain.define("gridPieces", [], ({ make }) => {
    const button = (text, onclick, props = {}) => make("button", { type: "button", onclick, ...props }, text);

    return {
        button,

        /** A button that is known by its name; `text` is an element or what the document calls it. */
        named: (name, text, onclick, props = {}) => button(text, onclick, { data: { act: name }, ...props }),

        row: (...children) => make("div", { className: "lt-v-buttons" }, ...children),

        badge: (data) => {
            const name = data.text("recommended");
            return make("b", { className: "lt-badge lt-done", title: name }, "★ ", make("span", {}, name));
        },

        thumb: (vote) => make("i", { className: vote > 0 ? "lt-thumb" : "lt-thumb lt-down" }),

        waiting: (data) => make("span", { className: "lt-missing" }, data.text("waiting")),
    };
});
