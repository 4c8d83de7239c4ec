// The theme stands in the address, so that nothing has to be stored and a link looks the same to everybody.
const theme = new URLSearchParams(location.hash.slice(1)).get("theme");
if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
