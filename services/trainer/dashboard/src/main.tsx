import { render } from "preact";
import { App } from "./app.tsx";
import { watchPrinting } from "./printing.ts";
import { show } from "./theme.ts";

show();
watchPrinting();
const root = document.getElementById("app");
if (root) {
  root.replaceChildren();
  render(<App />, root);
}
