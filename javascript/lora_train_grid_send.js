// How the grid's viewer asks the server for something: through a hidden text box and a hidden button.
loraTrain.define("gridSend", [], ({ BESIDE, find, send }) => {
    const AGAIN = 1500; // ms until a wish is sent once more
    const TRIES = 40; // until it counts as lost; not a time, since a slow machine comes to fewer of them

    const answered = () => find("#lora_train_grid_feedback .lt-answer");
    const numberOf = (answer) => (answer ? answer.dataset.number : "");

    const pause = () =>
        new Promise((done) => {
            setTimeout(done, BESIDE);
        });

    /** Send a wish until its own answer comes; whether it came. */
    const grant = async (button, wish) => {
        let tries = 0;
        let sent = 0;
        let before = "";
        for (;;) {
            const found = numberOf(answered());
            if (found === wish.number) return true;
            if (found !== before || Date.now() - sent > AGAIN) {
                if (tries === TRIES) return false;
                tries += 1;
                before = found;
                sent = Date.now();
                send("#lora_train_grid_wish", JSON.stringify(wish), button);
            }
            await pause(); // oxlint-disable-line no-await-in-loop -- one try after the other
        }
    };

    let line = Promise.resolve();
    let wishes = 0;
    /**
     * Ask the server for something; whether it answered. One wish after the other: gradio drops a click while it waits
     * for an answer, and on a busy machine it may take a click before the text. So a wish is numbered and sent until
     * its own answer comes; the server grants it once (ui/panels/validation.py).
     */
    const ask = (button, wish) => {
        wishes += 1;
        const number = `${Date.now()}-${wishes}-${Math.random().toString(36).slice(2)}`;
        line = line.then(() => grant(button, { ...wish, number }));
        return line;
    };

    return { answered, ask, numberOf };
});
