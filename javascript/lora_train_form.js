// The form: the browser keeps it over a reload (ui/widgets/keep.py), and advice is asked for when a field is left.
loraTrain.define("form", [], ({ every, find, isInView, press }) => {
    const SOON = 300; // ms after the last key
    const SELDOM = 10; // seconds
    const PATIENCE = 60000; // ms until an answer counts as lost
    const LEFT = 50; // ms after a field is left
    const ADVISED = ["data", "network", "training", "validation", "save"]; // sections of the settings

    // ---------------------------------------------------------- keeping
    let timer = 0;
    const keep = () => press("#lora_train_keep");
    const keepSoon = (event) => {
        if (event.target.id === "lora_train_keep" || !event.target.closest) return;
        if (!event.isTrusted || !event.target.closest("#lora_train")) return;
        clearTimeout(timer);
        timer = setTimeout(keep, SOON);
    };
    for (const kind of ["input", "change", "click"]) document.addEventListener(kind, keepSoon, true);
    window.addEventListener("pagehide", keep);

    every(SELDOM, () => {
        if (isInView(find("#lora_train"))) keep(); // what the server has filled in meanwhile
    });

    // ---------------------------------------------------------- advice
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
    const advised = () => {
        asked = 0;
        if (isOld) advise();
    };
    const adviseAfter = (kind, of) =>
        document.addEventListener(kind, ({ target }) => {
            if (!target.matches || !target.matches(`#lora_train ${of}`) || !target.closest(fields)) return;
            clearTimeout(asking);
            asking = setTimeout(advise, LEFT);
        });
    adviseAfter("focusout", ":is(input, textarea):not([type='checkbox'])");
    adviseAfter("change", "input[type='checkbox']");

    return { advised };
});
