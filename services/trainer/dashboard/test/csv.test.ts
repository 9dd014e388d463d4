import assert from "node:assert/strict";
import { test } from "node:test";
import { csvText } from "../src/csv.ts";

test("a name in a CSV file is no formula and ends where it ends", () => {
  for (const name of ["=HYPERLINK(\"http://evil\")", "+1", "-1", "@SUM(A1)", "\t=1"]) {
    assert.match(csvText(name), /^"'/);
  }
  assert.equal(csvText('a "b", c'), '"a ""b"", c"');
});
