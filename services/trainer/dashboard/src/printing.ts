/** Printing: a page is printed in light colours, with the charts that are off the screen.
 *
 * The browser takes its picture after the microtasks of ``beforeprint``, in which Preact and uPlot draw.
 */

import { inTheme, show } from "./theme.ts";

/** Print in light colours whatever the theme. */
export function watchPrinting(): void {
  addEventListener("beforeprint", () => inTheme("light"));
  addEventListener("afterprint", show);
}

/** Call ``changed`` before and after the page is printed; returns a function that ends this. */
export function onPrint(changed: (printing: boolean) => void): () => void {
  const before = () => changed(true);
  const after = () => changed(false);
  addEventListener("beforeprint", before);
  addEventListener("afterprint", after);
  return () => {
    removeEventListener("beforeprint", before);
    removeEventListener("afterprint", after);
  };
}
