import { render } from "preact";
import { App } from "./app.tsx";
import { show } from "./theme.ts";

show();
const root = document.getElementById("app");
if (root) {
  root.replaceChildren();
  render(<App />, root);
}
