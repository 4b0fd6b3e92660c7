// The tool of the scripted conversations, and `run`, which ends the process with an error if a check fails.
const cities = ["Rome", "Oslo"];

exports.question = "What is the weather in Rome?";

exports.schema = {
  type: "object",
  properties: { city: { type: "string", enum: cities } },
  required: ["city"],
  additionalProperties: false,
};

exports.check = (holds, message) => {
  if (!holds) throw new Error(`failed: ${message}`);
};

exports.weather = ({ city }) => {
  exports.check(cities.includes(city), `city ${city}`);
  return `It is sunny in ${city}.`;
};

exports.run = (main) => {
  const [address, model] = process.argv.slice(2);
  main(address, model).then(() => console.log("ok"), (error) => {
    console.error(error);
    process.exit(1);
  });
};
