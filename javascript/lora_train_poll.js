// When the page asks the server: once when the tab is seen for the first time, then once a second while it is in view.
loraTrain.define("poll", [], ({ every, find, isInView, press, whenSeen }) => {
    // What is in them is asked for when they are seen: a page that loads pays for each answer (ui/widgets/refresh.py).
    whenSeen("#lora_train", () => {
        press("#lora_train_opened");
        press("#lora_train_poll");
    });
    whenSeen("#lora_train_script_run", () => press("#lora_train_script_newest"));

    every(1, () => {
        if (isInView(find("#lora_train"))) press("#lora_train_poll");
    });
});
