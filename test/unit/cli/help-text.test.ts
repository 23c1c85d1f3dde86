import { beforeEach, describe, expect, it } from "vitest";
import { DocumentedCommand } from "../../../src/cli/documented-command.ts";
import { DocumentedOption } from "../../../src/cli/documented-option.ts";

/** Lines of a screen of 24 that are left when the prompt has its own. */
const LINES = 23;
/** Usage, description, two headings, an example, where all is said, -h; an empty line between them. */
const LINES_BESIDE_OPTIONS = 11;

const NOTE = "a text of some length that a narrow terminal has no line for";

describe("the help of a command", () => {
  let command = new DocumentedCommand();

  beforeEach(() => {
    command = new DocumentedCommand("tsimgfs")
      .createCommand("try")
      .description("Try.")
      .document({ examples: [["Try", "tsimgfs try"]] });
    command.addHelpOption(new DocumentedOption("-h, --help", "help").minor());
    const program = new DocumentedCommand("tsimgfs");
    program.addCommand(command);
  });

  function addOptions(count: number): void {
    command.option("--daily", "needed every day");
    for (let index = 1; index < count; index++) {
      const option = new DocumentedOption(`--minor-${index} <n>`, NOTE).minor();
      command.addOption(option.inManual(`All about it: ${NOTE}, and more.`));
    }
  }

  const linesAt = (width: number): string[] => {
    command.configureOutput({ getOutHelpWidth: () => width });
    return command.helpInformation().trimEnd().split("\n");
  };
  const rowsOf = (lines: readonly string[]): number =>
    lines.filter((line) => line.startsWith("  --minor")).length;

  it("lists all options as long as they fit a screen", () => {
    addOptions(LINES - LINES_BESIDE_OPTIONS);
    expect(linesAt(80)).toHaveLength(LINES);
    expect(rowsOf(linesAt(80))).toBe(LINES - LINES_BESIDE_OPTIONS - 1);
    expect(linesAt(80).join("\n")).not.toContain("More options");
  });

  it("only names minor ones with one more", () => {
    addOptions(LINES - LINES_BESIDE_OPTIONS + 1);
    const lines = linesAt(80);
    expect(lines.length).toBeLessThanOrEqual(LINES);
    expect(lines).toContain("  --daily  needed every day");
    const text = lines.join("\n");
    expect(text).toMatch(/^More options: --minor-1, --minor-2,(\s+--minor-\d+,)+\s+--help$/m);
    expect(text).not.toContain(NOTE);
    expect(lines.at(-1)).toBe("In full: tsimgfs help try, or man tsimgfs-try");
  });

  it.each([60, 100, 200])("lists the same on a terminal of %i columns", (width) => {
    addOptions(LINES - LINES_BESIDE_OPTIONS);
    expect(linesAt(width).join(" ").split(/\s+/)).toEqual(linesAt(80).join(" ").split(/\s+/));
  });

  it("says in full what its manual says of each", () => {
    addOptions(LINES);
    let text = "";
    command.configureOutput({ writeOut: (printed) => (text += printed) });
    command.outputManual();
    const words = text.replace(/\s+/g, " ");
    for (let index = 1; index < LINES; index++) {
      expect(words).toContain(`--minor-${index} <n> All about it: ${NOTE}, and more.`);
    }
  });
});
